"""Calls on device arrays that look like those of a call before, which was checked.

All checks and their messages are the operator's. A call that has passed them leaves here what such
calls have in common; a later one only looks where its arrays lie, and makes the launches of its
plan. Whatever is not as it was goes the operator's way again.
"""

from __future__ import annotations

import functools
from typing import Any

from ._dispatch import cuda
from ._families import family_of, family_of_all
from ._flat import overlap_range


class Repeats:
    """What calls have in common whose arrays look alike, once one of them has been checked."""

    def __init__(self):
        self.call = None  # as the target's plans know it

    def learn(self, queue, given, arrays, out):
        """Keep what a call on a queue has found: its arrays as given, and as its plan has them.

        `out` is the place of the result among them. What was not given was made.
        """
        read = [(place, array) for place, array in enumerate(arrays) if given[place] is not None]
        if any(array.owner is not given[place] for place, array in read):
            return  # something else is read in its place: detached, converted or widened
        self.out, self.family = out, queue.family
        self.read = []
        for place, array in read:
            is_other = place != out and given[out] is not None
            apart = overlap_range(arrays[out], array) if is_other else (0, 0)
            self.read.append((place, array.itemsize, *apart))
        like = self.family.dtype(queue.like)
        self.made = [
            (place, array.shape, None if array.dtype == like else array.dtype)
            for place, array in enumerate(arrays)
            if given[place] is None and array is not None
        ]
        self.call = queue.call

    def fit(self, pointers):
        """Say whether arrays at these places are aligned, and the result apart from the others."""
        result = pointers[self.out]
        for place, itemsize, low, high in self.read:
            pointer = pointers[place]
            if pointer % itemsize or low < pointer - result < high:
                return False
        return True


@functools.lru_cache(1024)
def repeats_of(*options_and_looks):
    """Return what calls of these options and looks have in common, which is yet to be learnt."""
    return Repeats()


def repeated(lead, arrays, stream, workspace, options):
    """Make a call as one before; return its arrays with its results, and its `Repeats`.

    The arrays are as the plan has them, with None for those to be made. None comes back for them
    all where the operator has to make the call, and for both where no call is like it. `lead` says
    where the call is made, on what stream, and of which library its results are.
    """
    looks, pointers = [options], []
    for array in arrays:
        if array is None:
            looks.append(None)
            pointers.append(0)
            continue
        kind: Any = type(array)
        family = family_of_all(kind) or family_of(array)
        if family is None:
            return None, None
        pointer, look = family.seen(array)
        if look is None:
            return None, None
        looks += kind, look
        pointers.append(pointer)
    repeats = repeats_of(*looks)
    if repeats.call is None or not repeats.fit(pointers):
        return None, repeats
    family = repeats.family
    with cuda("queue").queue_for(family, lead, stream, workspace) as queue:
        plan = repeats.call.plan(queue.device)
        if plan is None:
            return None, repeats
        if arrays[repeats.out] is not None:
            family.note_written(arrays[repeats.out])
        if repeats.made:
            arrays = [*arrays]
            for place, shape, dtype in repeats.made:
                arrays[place] = family.empty(shape, lead, dtype)
                pointers[place] = family.pointer(arrays[place])
        plan.run(queue, pointers)
    return arrays, repeats
