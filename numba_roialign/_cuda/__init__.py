"""The CUDA target: tables of taps, and schedules that compute results from them on a device."""
