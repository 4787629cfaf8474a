"""What a batch of RoIs holds and how it is divided: places in a line of the job's table `found`.

Each thread notes in a line of its own what its share of the rows holds, and the first line then
holds what all do.
"""

# added
INVALID = 0  # rows that cannot be pooled
SPARSE = 1  # rows whose taps lie far apart
LARGE = 2  # rows of which no window holds all pixels
TAPS = 3  # pixels that all bins tap together
ALONE = 4  # pixels to read where each RoI is pooled for itself
# the least
FIRST_INVALID = 5  # row
LOW = 6  # image
TOP = 7  # row of the maps
LEFT = 8  # column
# the largest
HIGH = 9  # image
BOTTOM = 10  # one more than the last row
RIGHT = 11
# of the division, in the first line: see `divide`
THREADS = 12
DENSE = 13  # rows that are not sparse
SPLIT = 14  # 1 where sparse rows are pooled by a schedule of their own
APART = 15  # 1 where RoIs have few pixels in common
DONE = 16  # 1 where the batch is computed already
# of the task that a thread is at: see `tasks.Task`
BLOCK = 17
IMAGE = 18
BEGIN = 19
STOP = 20
FIRST_ROW = 21
LAST_ROW = 22

END = 24  # a line is as long as three cache lines, so threads share none
