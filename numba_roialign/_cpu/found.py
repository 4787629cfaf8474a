"""What a batch of RoIs holds and how it is divided: places in a line of the job's table `found`.

Each thread notes in a line of its own what its share of the rows holds, and the first line then
holds what all do.
"""

# added
INVALID = 0  # rows that cannot be pooled
SPARSE = 1  # rows whose taps lie far apart
TAPS = 2  # pixels that all bins tap together
ALONE = 3  # pixels to read where each RoI is pooled for itself
# the least
FIRST_INVALID = 4  # row
LOW = 5  # image
TOP = 6  # row of the maps
LEFT = 7  # column
# the largest
HIGH = 8  # image
BOTTOM = 9  # one more than the last row
RIGHT = 10
# of the division, in the first line: see `divide`
THREADS = 11
DENSE = 12  # rows that are not sparse
SPLIT = 13  # 1 where sparse rows are pooled by a schedule of their own
APART = 14  # 1 where RoIs have few pixels in common
DONE = 15  # 1 where the batch is computed already
# of the task that a thread is at: see `tasks.Task`
BLOCK = 16
IMAGE = 17
BEGIN = 18
STOP = 19
FIRST_ROW = 20
LAST_ROW = 21

END = 24  # a line is as long as three cache lines, so threads share none
