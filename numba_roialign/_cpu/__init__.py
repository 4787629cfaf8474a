"""The CPU target: tables of taps, and schedules that compute RoIs from them on several threads.

Its words, beside those of `_taps`:

==========  ========================================================================================
batch       the RoIs of a call whose tables are in memory at once
sparse RoI  one whose window has many pixels that none of its bins tap; the others are dense
apart       of dense RoIs: with few pixels in common
window      the rows and columns that hold a RoI's taps; packed, the copy of them in scratch
lane        an element of a vector: a channel, a column or a row of bins, as the schedule has it
block       the channels that a task computes, mostly those in the lanes of one vector
chunk       RoIs of one image that stand side by side in the order of computing
part        some rows of bins; of a gradient, some rows of the map
task        a block of a chunk's parts: what a thread takes from the common counter
schedule    how tasks are computed, a function in a module of its own
job         the record that a call hands to compiled code
==========  ========================================================================================
"""
