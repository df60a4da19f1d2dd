"""Which implementation a checkpoint gets: the native family, or PyTorch's own module, bridged."""

from collections.abc import Sequence

from jaxft.models import architecture
from jaxft.models.checkpoint import config_json, timm_config
from jaxft.models.contract import Architecture
from jaxft.models.families import FAMILIES, TIMM
from jaxft.models.heads import NoHeadError
from jaxft.models.rates import Rates

IMPLEMENTATIONS = ("auto", "native", "bridge")
# Heads that 'auto' bridges where a native family of texts lacks them. Not those that predict tokens: of an
# encoder, transformers' causal class sees what follows.
_BRIDGED = ("token", "question", "choice")


def load_architecture(
    directory: str,
    *,
    num_labels: int,
    head: str | None = None,
    dropout: float | None = None,
    new_head: bool = False,
    implementation: str = "auto",
    depths: Sequence[tuple[str, int]] = (),
    vocabulary: int = 0,
    stochastic_depth: float | None = None,
) -> Architecture:
    """Reads `directory/config.json`; no weights are touched.

    Args:
        num_labels: classes of the head, whatever the checkpoint's own head has; 0 of heads that predict
            tokens.
        head: kind of head: 'sequence', 'token', 'question', 'choice', 'image', 'causal', 'masked' or
            'seq2seq', of some native families 'embedding' and 'sentence'; None: the family's first.
        dropout: replaces every dropout rate of the checkpoint; None keeps them.
        new_head: initialise the classifier even if the checkpoint's would fit.
        implementation: 'native', 'bridge', or 'auto': native where the family is implemented, and all
            that config.json asks for; bridged also where it lacks a head of tokens, questions or choices.
        depths: ordered (path pattern, depth) for a bridged model, before what its structure says.
        vocabulary: of a model of text, how many token ids it has to know: where config.json says fewer,
            every leaf with an axis of them is `grown`; 0: as config.json says.
        stochastic_depth: of a native family, as `architecture.load_architecture`; of a bridged model, what
            its own code makes of the `drop_path_rate` of its config.json; None keeps the checkpoint's.

    Raises:
        ValueError: as `architecture.load_architecture` or `bridge.load.load_bridged`.
    """
    assert implementation in IMPLEMENTATIONS, implementation
    because, native = "", tuple[str, ...]()
    if implementation == "native" or (implementation == "auto" and is_native(directory)):
        if depths:
            raise ValueError(
                "config.model.depths is for bridged models: the depths of a native family are its "
                "own; leave it empty, or set config.model.implementation='bridge'"
            )
        try:
            return architecture.load_architecture(
                directory,
                num_labels=num_labels,
                head=head,
                dropout=dropout,
                new_head=new_head,
                vocabulary=vocabulary,
                stochastic_depth=stochastic_depth,
            )
        except config_json.NotNativeError as error:
            if implementation == "native":
                raise ValueError(str(error)) from None
            because = str(error)
        except NoHeadError as error:
            if implementation == "native" or head not in _BRIDGED or "sequence" not in error.has:
                raise
            because, native = error.what, error.has
    # torch takes seconds to import, and is an extra.
    from jaxft.models.bridge.load import load_bridged

    try:
        return load_bridged(
            directory,
            num_labels=num_labels,
            head=head,
            rates=Rates(dropout, stochastic_depth),
            new_head=new_head,
            depths=tuple(depths),
            vocabulary=vocabulary,
            because=because,
        )
    except NoHeadError as error:
        has = dict.fromkeys((*native, *error.has))
        raise NoHeadError(error.what, head or "", tuple(has)) from None


def is_native(directory: str) -> bool:
    """Whether 'auto' takes a native family, or what says that there is no such model.

    Raises:
        ValueError: as `config_json.load`.
    """
    raw = config_json.load(directory)
    model_type, name = raw.get("model_type"), raw.get("architecture")
    if timm_config.is_timm(raw):
        return not isinstance(name, str) or any(name in family.timm for family in TIMM)
    return not isinstance(model_type, str) or model_type in FAMILIES
