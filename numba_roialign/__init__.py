"""RoIAlign on NumPy and CUDA arrays, compiled by Numba from one scalar kernel."""

from importlib.metadata import version

from ._api import ROIAlign, roi_align
from ._operator import InvalidRoIError

__all__ = ["InvalidRoIError", "ROIAlign", "roi_align"]
__version__ = version("numba_roialign")
