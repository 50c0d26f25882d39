"""The data sets of the benchmark: re-iterable batches `(x float32, labels int64)`, read one batch at a time."""

from isobit.benchmark.data.cifar10 import read_cifar10 as read_cifar10
from isobit.benchmark.data.cifar10 import read_cifar10_binary as read_cifar10_binary
from isobit.benchmark.data.cifar10 import read_cifar10_jpeg as read_cifar10_jpeg
from isobit.benchmark.data.dataset import Dataset as Dataset
from isobit.benchmark.data.digits import read_digits as read_digits
from isobit.benchmark.data.image_folder import read_image_folder as read_image_folder
from isobit.benchmark.data.imagenet_sample import read_imagenet_sample as read_imagenet_sample
from isobit.benchmark.data.location import data_file as data_file
from isobit.benchmark.data.location import data_folder as data_folder
from isobit.benchmark.data.normalization import NORMALIZATIONS as NORMALIZATIONS
from isobit.benchmark.data.normalization import Normalization as Normalization
from isobit.benchmark.data.npz import read_npz as read_npz
