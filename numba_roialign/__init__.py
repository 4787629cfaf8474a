"""RoIAlign on NumPy and CUDA arrays, compiled by Numba from one scalar kernel."""

from importlib.metadata import version

from ._api import roi_align, roi_align_backward, roi_align_box_backward
from ._geometry import Convention
from ._mindspore import ROIAlign, ROIAlignGrad
from ._operator import InvalidRoIError
from ._workspace import Workspace
from .conventions import CONVENTIONS

__all__ = [
    "CONVENTIONS",
    "Convention",
    "InvalidRoIError",
    "ROIAlign",
    "ROIAlignGrad",
    "Workspace",
    "roi_align",
    "roi_align_backward",
    "roi_align_box_backward",
]
__version__ = version("numba_roialign")
