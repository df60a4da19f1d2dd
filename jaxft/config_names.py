"""Which field is meant by another name: a typing error, or what another library calls it."""

from __future__ import annotations

import difflib
import re

from jaxft.config_field import Field
from jaxft.config_fields import BY_NAME, FIELDS, SECTIONS

WORKDIR = "--workdir"
# field (or flag): what the Hugging Face Trainer and its examples, Keras, fastai, timm and Lightning
# call the same thing. A name with a dot counts with its section only.
_CALLED: dict[str, str] = {
    WORKDIR: "output_dir work_dir logging_dir run_dir default_root_dir log_dir logdir save_dir "
    "checkpoint_dir experiment run_name output",
    "task": "problem_type task_name",
    "model.path": "model_name_or_path model_name model pretrained_model pretrained checkpoint "
    "pretrained_model_name_or_path model_id backbone arch initial_checkpoint tokenizer_name weights "
    "tokenizer config_name architecture",
    "model.scratch": "from_scratch random_init",
    "model.resize_vocabulary": "resize_token_embeddings resize_vocab resize_embeddings",
    "model.dropout": "drop_rate drop hidden_dropout_prob attention_probs_dropout_prob drop_mult ps "
    "classifier_dropout dropout_rate hidden_dropout",
    "model.stochastic_depth": "drop_path drop_path_rate stochastic_depth_prob drop_path_prob "
    "stochastic_depth_rate stoch_depth",
    "model.dtype": "fp16 bf16 precision torch_dtype amp mixed_precision half tf32 half_precision",
    "model.normalize": "normalize_embeddings",
    "model.remat": "gradient_checkpointing grad_checkpointing activation_checkpointing checkpointing",
    "data.train": "train_file train_data training_data train_dataset dataset dataset_name data "
    "train_split train_dir data_path train_path data_file input",
    "data.eval": "validation_file eval_file valid_file validation_data eval_dataset val_data "
    "valid_data dev_file val_file eval_data val_split validation_dir data.validation "
    "data.val data.valid data.dev validation_dataset",
    "data.test": "test_file test_data test_dataset predict_dataset",
    "data.dir": "data_dir dataset_dir",
    "data.eval_fraction": "validation_split valid_pct val_fraction test_size eval_split train_val_split "
    "validation_split_percentage validation_fraction eval_size val_size",
    "data.text": "text_column text_column_name text_column_names text_cols text_col sentence_column "
    "text_field sentence1_key",
    "data.label": "label_column label_column_name label_col label_names target_column label_field target "
    "label_key labels",
    "data.sample_by": "keep_linebreaks line_by_line",
    "data.mixture": "dataset_mixer interleave_datasets mixing datasets probabilities",
    "data.mixture_temperature": "sampling_temperature temperature",
    "data.folds": "n_splits k_folds kfold num_folds cv n_folds",
    "data.fold": "fold_index fold_idx",
    "data.group": "group_column groups group_by group_col",
    "data.rename": "rename_columns column_mapping column_map columns rename_column",
    "data.classes": "class_names class_list keep_classes",
    "data.examples_per_class": "max_train_samples n_shot shots few_shot samples_per_class",
    "data.pair_sampling": "sampling_strategy pair_strategy",
    "data.pair_iterations": "num_iterations n_iterations iterations",
    "data.max_length": "max_seq_length max_seq_len max_len sequence_length seq_len model_max_length "
    "seq_length max_tokens truncation",
    "data.pack": "packing group_by_length sample_packing",
    "data.augment": "augmentation aug_transforms aa auto_augment hflip data_augmentation item_tfms "
    "batch_tfms aug augmentations transforms",
    "data.mixup": "mixup_alpha mix_up",
    "data.cutmix": "cutmix_alpha cut_mix",
    "data.mix_probability": "mixup_prob cutmix_prob mixup_probability",
    "data.mix_switch": "mixup_switch_prob switch_prob",
    "data.cache": "cache_dir data_cache",
    "data.workers": "num_workers dataloader_num_workers preprocessing_num_workers n_workers workers_count",
    "train.batch_size": "per_device_train_batch_size train_batch_size bs batch global_batch_size batchsize "
    "per_gpu_train_batch_size train_bs",
    "train.epochs": "num_train_epochs num_epochs n_epoch n_epochs max_epochs epoch nb_epoch",
    "train.steps": "max_steps num_steps total_steps num_training_steps train_steps max_train_steps",
    "train.seed": "random_seed data_seed random_state seed_everything",
    "train.accumulate": "gradient_accumulation_steps accumulate_grad_batches grad_accum_steps n_acc "
    "accumulation_steps grad_accumulation_steps grad_accum gradient_accumulation",
    "train.label_smoothing": "label_smoothing_factor smoothing",
    "train.class_weights": "class_weight loss_weights pos_weight label_weights",
    "train.focal_gamma": "focal gamma focal_loss focal_loss_gamma",
    "train.r_drop": "rdrop rdrop_alpha r_drop_alpha kl_alpha",
    "train.head_c": "head_params",
    "train.on_nonfinite": "skip_nonfinite skip_nan detect_anomaly logging_nan_inf_filter terminate_on_nan "
    "apply_if_finite on_nan nan_policy",
    "train.max_nonfinite": "max_consecutive_errors max_nan max_skipped",
    "train.log_every": "logging_steps log_every_n_steps log_interval logging_interval log_every_steps "
    "log_steps log.every log.steps",
    "train.compile_cache": "compilation_cache jit_cache compile_cache_dir",
    "distill.teacher": "teacher_model teacher_name_or_path teacher_model_name_or_path distillation_teacher "
    "teacher_path",
    "distill.weight": "alpha_ce alpha_distil distillation_alpha distill_alpha kd_alpha kd_weight",
    "distill.temperature": "distillation_temperature distill_temperature kd_temperature distillation_tau",
    "optim.lr": "learning_rate lrate lr_max max_lr base_lr peak_lr init_lr base_learning_rate step_size eta "
    "body_learning_rate",
    "optim.optimizer": "opt optim optimizer_name opt_func optimizer_type",
    "optim.schedule": "lr_scheduler_type sched scheduler lr_schedule lr_scheduler lr_sched",
    "optim.warmup": "warmup_ratio warmup_steps warmup_epochs num_warmup_steps warmup_prop pct_start "
    "warmup_proportion warm_up warmup_fraction",
    "optim.end_lr": "min_lr lr_end final_lr min_learning_rate min_lr_rate eta_min end_learning_rate",
    "optim.weight_decay": "wd decay l2 weight_decay_rate",
    "optim.b1": "adam_beta1 beta1 beta_1 momentum mom moms",
    "optim.b2": "adam_beta2 beta2 beta_2",
    "optim.eps": "adam_epsilon epsilon opt_eps adam_eps",
    "optim.clip": "max_grad_norm clip_grad gradient_clip_val clipnorm global_clipnorm grad_clip clip_norm "
    "clip_grad_norm gradient_clip gradient_clipping grad_norm clip_gradients",
    "optim.layer_decay": "llrd lr_decay_rate layerwise_lr_decay layer_wise_lr_decay layer_lr_decay "
    "layerwise_decay layer_wise_decay layerwise_learning_rate_decay",
    "optim.freeze_below": "freeze freeze_layers freeze_to num_frozen_layers freeze_backbone freeze_encoder "
    "n_frozen_layers freeze_n_layers frozen_layers freeze_base",
    "optim.frozen": "trainable frozen_parameters freeze_patterns requires_grad freeze_modules",
    "optim.lr_mult": "lr_multipliers lr_multiplier",
    "optim.groups": "param_groups parameter_groups optimizer_grouped_parameters optim_groups",
    "optim.decay_towards": "l2_sp l2sp",
    "optim.unfreeze": "gradual_unfreezing unfreezing fine_tune freeze_epochs",
    "optim.sam_radius": "sam rho sam_rho",
    "optim.average": "ema model_ema use_ema swa weight_averaging",
    "optim.average_decay": "ema_decay model_ema_decay ema_momentum",
    "optim.average_from": "swa_start swa_epoch_start",
    "eval.every": "eval_steps eval_interval val_check_interval validation_freq eval_strategy eval_every "
    "evaluation_strategy check_val_every_n_epoch eval.steps eval.interval eval_freq evaluate_every "
    "validation_steps",
    "eval.batch_size": "per_device_eval_batch_size eval_batch_size val_bs validation_batch_size "
    "per_gpu_eval_batch_size val_batch_size test_batch_size",
    "eval.metric": "metric_for_best_model eval_metric metrics monitor compute_metrics best_metric",
    "eval.patience": "early_stopping_patience early_stopping early_stop patience_epochs",
    "eval.min_delta": "early_stopping_threshold min_improvement early_stopping_min_delta",
    "parallel.mode": "strategy distribution_strategy ddp distributed_backend distribute_strategy",
    "parallel.data": "devices gpus n_gpu num_gpus num_devices num_nodes data_parallel dp",
    "parallel.fsdp": "sharding fully_sharded zero_stage fsdp_size",
    "parallel.context": "context_parallel context_parallel_size cp cp_size ring_attention "
    "sequence_parallel sp_size",
    "parallel.tensor": "tensor_parallel tensor_parallel_size tp model_parallel tp_size",
    "checkpoint.every_steps": "save_steps save_strategy save_freq checkpoint_every save_interval save_every "
    "checkpoint_interval every_n_train_steps checkpoint.every checkpoint.steps checkpointing_steps",
    "checkpoint.keep": "save_total_limit save_top_k max_to_keep checkpoint_hist keep_checkpoint_max",
    "checkpoint.every_minutes": "save_minutes train_time_interval checkpoint_minutes save_interval_minutes "
    "save_interval_secs",
    "checkpoint.keep_every_steps": "keep_period keep_every keep_checkpoint_every_n_steps",
    "checkpoint.keep_every_hours": "keep_checkpoint_every_n_hours keep_hours keep_time_interval",
    "log.tensorboard": "report_to tensorboard_dir log_wandb callbacks loggers logger",
}  # fmt: skip
_SYNONYMS = {name: field for field, names in _CALLED.items() for name in names.split()}
_LAST: dict[str, list[str]] = {}
for _field in FIELDS:
    _LAST.setdefault(_field.name.rpartition(".")[2], []).append(_field.name)


def field_named(name: str) -> Field:
    """Raises ValueError for a section, and for what is no field; the message names the nearest."""
    if name in BY_NAME:
        return BY_NAME[name]
    if name in SECTIONS:
        inside = ", ".join(field.name for field in FIELDS if field.section == name)
        raise ValueError(f"config.{name} is a section; set one of its fields: {inside}")
    raise ValueError(no_such_field(name))


def no_such_field(name: str) -> str:
    """Of a dotted name, or of its last part alone."""
    return f"config.{name[:80]} does not exist{_question(meant(name))}"


def meant(name: str) -> list[str]:
    """Fields, or a flag, that `name` may stand for; best first, [] when nothing is near.

    >>> meant('optim.learning_rate'), meant('num_train_epochs'), meant('trian.epochs')
    (['optim.lr'], ['train.epochs'], ['train.epochs'])
    """
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_")[:200]
    section, _, last = name.rpartition(".")
    if name in _SYNONYMS:
        return [_SYNONYMS[name]]
    if last in _LAST:
        return _in_section(section, _LAST[last])
    if last in _SYNONYMS:
        return [_SYNONYMS[last]]
    inside = [part for part in _LAST if f"{section}.{part}" in BY_NAME]
    pools = (inside, 0.7), ([*_LAST, *_SYNONYMS], 0.75), ([*_LAST], 0.5)
    for pool, cutoff in pools:
        if close := difflib.get_close_matches(last, pool, n=1, cutoff=cutoff):
            return _in_section(section, _LAST.get(close[0]) or [_SYNONYMS[close[0]]])
    return difflib.get_close_matches(name, list(BY_NAME), n=1, cutoff=0.6)


def _in_section(section: str, fields: list[str]) -> list[str]:
    """Of fields with the same last part those whose section is meant, where that can be told."""
    by_section = {field.rpartition(".")[0]: field for field in fields}
    close = difflib.get_close_matches(section, list(by_section), n=1, cutoff=0.6)
    return [by_section[close[0]]] if close else fields


def _question(fields: list[str]) -> str:
    if not fields:
        return "; --help lists all fields"
    return f" (did you mean {' or '.join(map(repr, fields))}?)"
