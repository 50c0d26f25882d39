"""Training methods by the name that the literature uses: which quantizers take weights and which activations."""

from dataclasses import dataclass

from isobit.recipes.choice import Choice


@dataclass(frozen=True, slots=True)
class Method:
    """Names in `QUANTIZERS`, with settings where they are not the algorithm's own.

    Where a paper leaves activations in float, they are `fixed` here: 8 bits lose nothing.
    """

    weight: Choice
    activation: Choice


DOREFA_WEIGHTS: Choice = {"name": "dorefa", "unit_range": False}
"""In their own range, so that they train under every folding of batch norm; one that is kept takes up the range."""


METHODS: dict[str, Method] = {
    "lsq": Method("lsq", "lsq"),
    "lsq_plus": Method("lsq_plus", "lsq_plus"),
    "dorefa": Method(DOREFA_WEIGHTS, "dorefa"),
    "pact": Method(DOREFA_WEIGHTS, "pact"),
    "pact_sawb": Method("sawb", "pact"),
    "qil": Method("qil", "qil"),
    "dsq": Method("dsq", "dsq"),
    "tqt": Method("tqt", "tqt"),
    "ewgs": Method("ewgs", "ewgs"),
    "apot": Method("apot", "apot"),
    "k_means": Method("k_means", "fixed"),
    "twn": Method("twn", "lsq"),
    "ttq": Method("ttq", "lsq"),
    "bwn": Method("bwn", "lsq"),
    "ir_net": Method("ir_net", "lsq"),
    "logarithmic": Method("logarithmic", "lsq"),
    "lcq": Method("lcq", "lsq"),
    "n2uq": Method("n2uq", "lsq"),
    "abc_net": Method("abc_net", "lsq"),
    "slb": Method({"name": "slb", "learning_rate_scale": 300.0}, "lsq"),  # for short searches from pretrained weights
    "inq": Method("inq", "fixed"),
    "bi_real": Method("bi_real", "bi_real"),
}
"""A method is a line here."""
