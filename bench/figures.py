"""Figures from raw samples: medians, ratios and rates, of the plain dictionaries in a JSON file."""

from statistics import geometric_mean, median


def seconds_of(workload, name):
    """Return the median seconds per call over the rounds, or None where it was not timed."""
    result = workload["results"].get(name, {})
    return median(result["seconds"]) if result.get("seconds") else None


def call_seconds_of(workload, name):
    """Return the median seconds of a call from end to end, or None where it was not timed apart."""
    result = workload["results"].get(name, {})
    return median(result["call_seconds"]) if result.get("call_seconds") else None


def operation(run):
    """Return what was timed, in words; files from before there was a choice tell the pooling."""
    return {"pool": "pooling", "backward": "gradient of features"}[run.get("operation", "pool")]


def of_kind(run, *kinds):
    return [name for name, about in run["implementations"].items() if about["kind"] in kinds]


def our_name(run):
    return of_kind(run, "ours")[0]


def fastest_peer(run, workload):
    """Return the peer with the smallest median, or None where none was timed."""
    timed = {name: seconds_of(workload, name) for name in of_kind(run, "peer")}
    timed = {name: seconds for name, seconds in timed.items() if seconds is not None}
    return min(timed, key=timed.get) if timed else None


def ratio(run, workload, name=None):
    """Return how many times faster we are than the fastest peer; below 1 is a loss."""
    ours, peer = seconds_of(workload, name or our_name(run)), fastest_peer(run, workload)
    return seconds_of(workload, peer) / ours if ours and peer else None


def ratios(run, name=None):
    """Return the ratios by workload, those without one left out."""
    found = {key: ratio(run, workload, name) for key, workload in run["workloads"].items()}
    return {key: number for key, number in found.items() if number is not None}


def mean_ratio(run, name=None):
    found = ratios(run, name)
    return geometric_mean(found.values()) if found else None


def rate(workload, name):
    """Return GB/s, counted by the bytes that no implementation can avoid."""
    seconds = seconds_of(workload, name)
    return workload["compulsory_bytes"] / seconds / 1e9 if seconds else None


def extra_bytes(workload, name):
    """Return how much memory a call took at its peak beyond the inputs, its result included."""
    result = workload["results"].get(name, {})
    if result.get("peak_bytes") is None or result.get("before_bytes") is None:
        return None
    return max(0, result["peak_bytes"] - result["before_bytes"])
