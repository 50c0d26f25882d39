"""Quantizers: small modules that declare their grid. A new one costs a file and a line in this table."""

from isobit.quantizers.abc_net import AbcNet
from isobit.quantizers.apot import Apot
from isobit.quantizers.bi_real import BiReal
from isobit.quantizers.bwn import Bwn
from isobit.quantizers.dorefa import DoReFa
from isobit.quantizers.dsq import Dsq
from isobit.quantizers.dynamic import Dynamic, DynamicQuantizer
from isobit.quantizers.ewgs import Ewgs
from isobit.quantizers.fixed import Fixed, FixedQuantizer
from isobit.quantizers.inq import Inq
from isobit.quantizers.ir_net import IrNet
from isobit.quantizers.k_means import KMeans
from isobit.quantizers.lcq import Lcq
from isobit.quantizers.logarithmic import Logarithmic
from isobit.quantizers.lsq import Lsq, LsqQuantizer
from isobit.quantizers.lsq_plus import LsqPlus
from isobit.quantizers.n2uq import N2uq
from isobit.quantizers.pact import Pact
from isobit.quantizers.protocol import Quantizer, QuantizerSettings, Role
from isobit.quantizers.qil import Qil
from isobit.quantizers.sawb import Sawb
from isobit.quantizers.slb import Slb
from isobit.quantizers.tqt import Tqt
from isobit.quantizers.ttq import Ttq
from isobit.quantizers.twn import Twn

QUANTIZERS: dict[str, type[QuantizerSettings]] = {
    "fixed": Fixed,
    "dynamic": Dynamic,
    "lsq": Lsq,
    "lsq_plus": LsqPlus,
    "pact": Pact,
    "dorefa": DoReFa,
    "sawb": Sawb,
    "qil": Qil,
    "dsq": Dsq,
    "tqt": Tqt,
    "ewgs": Ewgs,
    "apot": Apot,
    "k_means": KMeans,
    "twn": Twn,
    "ttq": Ttq,
    "bwn": Bwn,
    "bi_real": BiReal,
    "ir_net": IrNet,
    "logarithmic": Logarithmic,
    "lcq": Lcq,
    "n2uq": N2uq,
    "abc_net": AbcNet,
    "slb": Slb,
    "inq": Inq,
}

__all__ = [
    "QUANTIZERS",
    "AbcNet",
    "Apot",
    "BiReal",
    "Bwn",
    "DoReFa",
    "Dsq",
    "Dynamic",
    "DynamicQuantizer",
    "Ewgs",
    "Fixed",
    "FixedQuantizer",
    "Inq",
    "IrNet",
    "KMeans",
    "Lcq",
    "Logarithmic",
    "Lsq",
    "LsqPlus",
    "LsqQuantizer",
    "N2uq",
    "Pact",
    "Qil",
    "Quantizer",
    "QuantizerSettings",
    "Role",
    "Sawb",
    "Slb",
    "Tqt",
    "Ttq",
    "Twn",
]
