"""Quantize Keras networks with TensorFlow's own converter: the LiteRT files that the referee is tried on.

    PYTHON tools/keras_files.py FOLDER [NETWORK ...]

PYTHON is one with TensorFlow (`pip install tensorflow-cpu`); isobit is not imported. Weights are drawn, statistics of
batch norms too. Each network is written with bytes (`.int8`) and floats (`.float_ends`) as inputs and outputs; the
small one also with 16-bit activations, with weights alone as integers, and with one scale per weight.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def small(layers: Any, keras: Any) -> Any:
    """Most ops that a convolutional network has: pooling, a residual, concat, a gate, LeakyReLU, softmax."""
    start = layers.Input((32, 32, 3))
    x = layers.ZeroPadding2D(1)(start)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2)(x)))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x)))
    x = layers.MaxPool2D(2)(layers.Add()([x, layers.Conv2D(8, 1)(y)]))
    x = layers.Concatenate()([x, layers.AveragePooling2D(3, 1, "same")(x)])
    x = layers.Conv2D(16, 3, activation="swish")(x)
    gate = layers.Conv2D(16, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Flatten()(layers.LeakyReLU(0.2)(layers.Multiply()([x, gate])))
    return keras.Model(start, layers.Dense(10, activation="softmax")(x))


def line(layers: Any, keras: Any) -> Any:
    """Dense layers and a convolution over one dimension, with shapes that the file computes."""
    parts = [layers.Input((12, 7)), layers.Dense(16, activation="relu"), layers.Conv1D(8, 3, activation="relu")]
    return keras.Sequential([*parts, layers.Flatten(), layers.Dense(4)])


def application(name: str, **settings: Any) -> Callable[[Any, Any], Any]:
    """A network of keras.applications."""
    return lambda _, keras: getattr(keras.applications, name)(input_shape=(96, 96, 3), weights=None, **settings)


NETWORKS: dict[str, Callable[[Any, Any], Any]] = {
    "small": small,
    "line": line,
    "mobilenet_v1": application("MobileNet", alpha=0.25, classes=100),
    "mobilenet_v2": application("MobileNetV2", alpha=0.35, classes=100),
    "mobilenet_v3": application("MobileNetV3Small", classes=20, include_preprocessing=False),
}


def write(name: str, folder: Path) -> None:
    """All files of one network."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    tf.keras.utils.set_random_seed(0)
    net = NETWORKS[name](tf.keras.layers, tf.keras)
    for layer in net.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            drawn = [rng.uniform(0.8, 1.2, gamma.shape), rng.normal(0, 0.3, beta.shape)]
            layer.set_weights([*drawn, mean, variance * rng.uniform(0.15, 0.3, variance.shape)])
    samples = [rng.uniform(-1, 1, (1, *net.input_shape[1:])).astype(np.float32) for _ in range(16)]

    def calibration() -> Iterator[list[Any]]:
        yield from ([x] for x in samples)

    calibrated = {"representative_dataset": calibration}
    wide = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    kinds: dict[str, dict[str, Any]] = {
        "int8": {**calibrated, "inference_input_type": tf.int8, "inference_output_type": tf.int8},
        "float_ends": calibrated,
    }
    if name == "small":
        kinds["int16"] = {**calibrated, "target_spec": tf.lite.TargetSpec(supported_ops=[wide])}
        kinds["weights_alone"] = {}
        kinds["per_tensor"] = {**calibrated, "_experimental_disable_per_channel": True}
    for kind, settings in kinds.items():
        converter = tf.lite.TFLiteConverter.from_keras_model(net)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        for key, value in settings.items():
            setattr(converter, key, value)
        (folder / f"{name}.{kind}.tflite").write_bytes(converter.convert())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.networks:
        write(name, options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
