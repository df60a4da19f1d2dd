"""Tokens a second of generation, jaxft beside transformers' `generate`, in one process at fp32.

    python benchmarks/generate.py
    python benchmarks/generate.py --width 768 --blocks 12 --prompts 32 --new 128

A model with random weights and a cache, greedy, the same prompts of many lengths on both sides, taken turn
about. transformers gets batches of as many as jaxft computes at a time, sorted by length, so that it pads
least. Twice: with so many new tokens for every text, and with an ending token, so that texts end at
different times. Tokens are counted up to each text's end, and must be equal. Printed are tokens per second
of wall time and per CPU second (of all threads), the medians of the rounds; compilation is on its own line.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers

from jaxft import models
from jaxft.generation.decoding import Settings, generate
from jaxft.models import hf

Texts = list[list[int]]


def main() -> None:
    """Build the model, check that both sides say the same, and time them."""
    args = _arguments()
    model, prompts = _model(args), _prompts(args)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        architecture = models.load_architecture(folder, num_labels=0, head="causal")
        params, _ = hf.read_params(folder, architecture, key=jax.random.key(0))
    size = sum(p.numel() for p in model.parameters())
    lengths = f"{args.shortest} to {args.longest}"
    print(f"{size / 1e6:.0f} M parameters, {len(prompts)} prompts of {lengths} tokens")
    theirs = _torch(model, prompts, args, ())
    # A token that many texts come upon, each at another time.
    ends = Counter(token for text in theirs for token in set(text[args.new // 8 :]))
    usual = ends.most_common()[len(ends) // 50][0]
    for name, eos in (("every text as long", ()), ("texts that end", (usual,))):
        settings = Settings(args.new, eos=eos, sequences=args.sequences)
        sides: dict[str, Callable[[], Texts]] = {
            "jaxft": functools.partial(generate, architecture, params, prompts, settings),
            "transformers": functools.partial(_torch, model, prompts, args, eos),
        }
        _compare(name, sides, args.rounds)


def _compare(name: str, sides: dict[str, Callable[[], Texts]], rounds: int) -> None:
    begun = time.perf_counter()
    found = {side: run() for side, run in sides.items()}
    equal = sum(a == b for a, b in zip(*found.values(), strict=True))
    count = sum(map(len, found["jaxft"]))
    print(f"\n{name}: {count} tokens, {equal} of {len(found['jaxft'])} texts equal; first round "
          f"{time.perf_counter() - begun:.1f} s")  # fmt: skip
    rates: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = sum(map(len, run()))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            rates[side].append((tokens / wall, tokens / cpu))
    medians = {
        side: tuple(statistics.median(x) for x in zip(*each, strict=True))
        for side, each in rates.items()
    }
    for side, (wall, cpu) in medians.items():
        print(f"  {side:12} {wall:8.1f} tokens/s {cpu:8.1f} tokens per CPU second")
    ratios = [a / b for a, b in zip(medians["jaxft"], medians["transformers"], strict=True)]
    print(f"  ratio        {ratios[0]:8.2f}          {ratios[1]:8.2f}")


def _torch(model, prompts: Texts, args: argparse.Namespace, eos: tuple[int, ...]) -> Texts:
    """transformers' texts, in the order of the prompts, each up to its end."""
    model.generation_config.eos_token_id = list(eos) or None
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    found: Texts = [[] for _ in prompts]
    for start in range(0, len(order), args.sequences):
        chosen = order[start : start + args.sequences]
        width = max(len(prompts[n]) for n in chosen)
        ids = np.zeros((len(chosen), width), np.int64)
        mask = np.zeros_like(ids)
        for row, n in enumerate(chosen):
            ids[row, width - len(prompts[n]) :] = prompts[n]
            mask[row, width - len(prompts[n]) :] = 1
        with torch.inference_mode():
            texts = model.generate(
                torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=args.new,
                do_sample=False, pad_token_id=0,
            )[:, width:]  # fmt: skip
        for n, text in zip(chosen, texts.tolist(), strict=True):
            end = next((place for place, token in enumerate(text) if token in eos), len(text) - 1)
            found[n] = text[: end + 1]
    return found


def _model(args: argparse.Namespace):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=args.width * 8 // 3,
        num_hidden_layers=args.blocks,
        num_attention_heads=args.width // 64,
        num_key_value_heads=args.width // 128,
        max_position_embeddings=2048,
        initializer_range=args.spread,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval()


def _prompts(args: argparse.Namespace) -> Texts:
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(args.shortest), np.log(args.longest), args.prompts))
    return [rng.integers(1, args.vocabulary, int(length)).tolist() for length in lengths]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in {
        "width": 512, "blocks": 8, "vocabulary": 32000, "prompts": 48, "shortest": 8,
        "longest": 200, "new": 64, "sequences": 16, "rounds": 3,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--spread", type=float, default=0.1, help="of the random weights")
    return parser.parse_args()


if __name__ == "__main__":
    main()
