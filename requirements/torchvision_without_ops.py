"""Declare the two operators that torchvision looks up when it is imported.

PyPI's torchvision brings them for CUDA only, and beside torch's CPU build has none. vLLM's LLaVA
imports its transforms, and no more of it. Loaded by a .pth file, for tests alone.
"""

import sys


class Declare:
    """Finds nothing; declares the operators as soon as torchvision is looked for."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            torch.library.define("torchvision::nms", "(Tensor b, Tensor s, float t) -> Tensor")
            torch.library.define("torchvision::qnms", "(Tensor b, Tensor s, float t) -> Tensor")


sys.meta_path.insert(0, Declare())
