"""The data sets of the benchmark: re-iterable batches `(x float32, labels int64)`, read one batch at a time."""

from isobit.benchmark.data.cifar10 import cifar10 as cifar10
from isobit.benchmark.data.cifar10 import cifar10_binary as cifar10_binary
from isobit.benchmark.data.cifar10 import cifar10_jpeg as cifar10_jpeg
from isobit.benchmark.data.dataset import Dataset as Dataset
from isobit.benchmark.data.location import data_file as data_file
from isobit.benchmark.data.location import data_folder as data_folder
from isobit.benchmark.data.normalization import NORMALIZATIONS as NORMALIZATIONS
from isobit.benchmark.data.normalization import Normalization as Normalization
