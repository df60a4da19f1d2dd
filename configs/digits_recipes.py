"""One worked example of each way to treat layers differently, on the quickstart's data.

python -m jaxft.train --config configs/digits_recipes.py:layerwise --workdir runs/layerwise

plain       every parameter at one rate, from the start
layerwise   each block further from the head learns 0.7 times as fast (BEiT, ELECTRA)
gradual     the head first, one more block below it every tenth of the run (ULMFiT)
lp_ft       the head alone for a fifth of the run, then everything (LP-FT)
groups      rates, decay and schedules of their own for head and embeddings (fastai's
            discriminative rates, PyTorch's parameter groups)
l2sp        decay towards the pretrained weights in place of zero (L2-SP)
ema         a moving average of the weights is what counts
swa         the mean of the weights of the last quarter of the run is
wise_ft     the head first; then a mixture, half pretrained, is what counts (WiSE-FT)
sam         gradients are taken a little uphill (sharpness-aware; twice the work)
free        no schedule: the weights are averaged instead (schedule-free)

Test accuracy over five seeds, and the difference to `plain` of the same seed (mean and standard
deviation; benchmarks/digits_seeds.py):

plain       0.851 ± 0.035
layerwise   0.851 ± 0.029    0.000 ± 0.012
gradual     0.838 ± 0.030   -0.012 ± 0.044
lp_ft       0.863 ± 0.011   +0.012 ± 0.032
groups      0.854 ± 0.039   +0.003 ± 0.012
l2sp        0.852 ± 0.036   +0.001 ± 0.003
ema         0.851 ± 0.035    0.000 ± 0.000
swa         0.851 ± 0.035    0.000 ± 0.000
wise_ft     0.841 ± 0.020   -0.010 ± 0.037
sam         0.854 ± 0.036   +0.003 ± 0.019
free        0.854 ± 0.009   +0.003 ± 0.035

None of them differs from `plain` by more than chance: 25 labels and a model of four blocks leave little
to win. What some change is the spread over seeds (lp_ft, free); ema and swa cannot help where the
schedule ends at zero. The examples show how to ask, not that it pays.
"""

from pathlib import Path

from jaxft.terminal.config_file import load

QUICKSTART = str(Path(__file__).parent / "quickstart.py")


def get_config(recipe: str = "plain"):
    config = load(QUICKSTART)
    optim = config.optim
    optim.freeze_below, optim.layer_decay, optim.lr = None, 1.0, 2e-3
    if recipe == "layerwise":
        optim.layer_decay = 0.7
    elif recipe == "gradual":
        optim.unfreeze, optim.unfreeze_every = "top_down", "10%"
    elif recipe == "lp_ft":
        optim.unfreeze, optim.unfreeze_every = "lp_ft", "20%"
    elif recipe == "groups":
        optim.groups = (
            ("classifier/.*", {"lr": 2 * optim.lr, "weight_decay": 0.0}),
            ("vit/embeddings/.*", {"lr": optim.lr / 10, "schedule": "constant"}),
        )
    elif recipe == "l2sp":
        optim.decay_towards, optim.weight_decay = "pretrained", 0.5
    elif recipe == "ema":
        optim.average = "ema"
    elif recipe == "swa":
        optim.average, optim.average_from = "swa", "75%"
    elif recipe == "wise_ft":
        optim.unfreeze, optim.unfreeze_every = "lp_ft", "20%"
        optim.wise_ft = 0.5
    elif recipe == "sam":
        optim.sam_radius = 0.05
    elif recipe == "free":
        optim.schedule_free, optim.schedule = True, "constant"
    elif recipe != "plain":
        known = "plain, layerwise, gradual, lp_ft, groups, l2sp, ema, swa, wise_ft, sam, free"
        raise ValueError(f"recipe {recipe!r} is not one of {known}")
    return config
