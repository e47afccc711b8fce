"""A converted model on an AMD GPU: mxort's helper, plain onnxruntime, tensors that stay on the GPU; or a decoder whose
tokens and cache do.

Usage: gpu.py MODEL.mxfp4.onnx   a model with one float input; its symbolic dimensions become 4
       gpu.py FOLDER             a decoder of onnxruntime-genai: twelve tokens behind one
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

import mxort

AMD = 0x1002  # the vendor of the memory, as PCI numbers it


def random_input(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    (info,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 4 for size in info.shape]
    return {info.name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}


def with_the_helper(path: str) -> ort.InferenceSession:
    """An ordinary onnxruntime.InferenceSession. device="auto" would fall back to the CPU, with a warning."""
    return mxort.InferenceSession(path, device="gpu")


def with_onnxruntime(path: str) -> ort.InferenceSession:
    """What the helper does, for pipelines that make their own sessions (onnxruntime 1.24 or later)."""
    name = mxort.get_ep_name()

    def gpus() -> list[
        ort.OrtEpDevice
    ]:  # without this filter the CPU too, where the operators run without a GPU
        gpu = ort.OrtHardwareDeviceType.GPU
        return [each for each in ort.get_ep_devices() if each.ep_name == name and each.device.type == gpu]

    if not gpus():  # registered once per process
        ort.register_execution_provider_library(name, mxort.get_library_path())
    if not gpus():
        sys.exit("onnxruntime finds no GPU that mxort can use: see `mxort doctor`")
    options = ort.SessionOptions()
    options.add_provider_for_devices(gpus()[:1], {"memory_limit": str(8 << 30)})
    return ort.InferenceSession(path, options)


def on_the_gpu(
    session: ort.InferenceSession, feeds: dict[str, np.ndarray], like: np.ndarray, device_id: int = 0
) -> np.ndarray:
    """Inputs and output (shape and type of ``like``) bound to GPU memory: our operators' runs copy nothing."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "gpu", device_id, AMD))
    output = ort.OrtValue.ortvalue_from_shape_and_type(like.shape, like.dtype, "gpu", device_id, AMD)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, output)
    session.run_with_iobinding(binding)
    return output.numpy()  # the copy back, when it is wanted


def generate(folder: str) -> None:
    generator = mxort.Generator(folder, max_length=64)
    print(*generator.generate([1], max_new_tokens=12))


def main(path: str) -> None:
    if Path(path).is_dir():
        generate(path)
        return
    session = with_the_helper(path)
    feeds = random_input(session)
    first = session.run(None, feeds)[0]
    print("helper      ", session.get_providers()[0], first.shape)
    second = with_onnxruntime(path).run(None, feeds)[0]
    print("onnxruntime ", "same" if np.array_equal(first, second) else "DIFFERENT")
    third = on_the_gpu(session, feeds, first)
    print("bound to GPU", "same" if np.array_equal(first, third) else "DIFFERENT")


if __name__ == "__main__":
    main(sys.argv[1])
