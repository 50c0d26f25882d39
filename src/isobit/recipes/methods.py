"""Training methods by the name that the literature uses: which quantizers take weights and which activations."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """Names in `QUANTIZERS`. Where a paper leaves activations in float, they are `fixed` here: 8 bits lose nothing."""

    weight: str
    activation: str


METHODS: dict[str, Method] = {
    "lsq": Method("lsq", "lsq"),
    "lsq_plus": Method("lsq_plus", "lsq_plus"),
    "dorefa": Method("dorefa", "dorefa"),
    "pact": Method("dorefa", "pact"),
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
    "slb": Method("slb", "lsq"),
    "inq": Method("inq", "fixed"),
    "bi_real": Method("bi_real", "bi_real"),
}
"""A method is a line here."""
