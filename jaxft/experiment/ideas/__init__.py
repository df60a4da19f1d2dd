"""Ideas that change the update or the weights that count, one per file.

The optimizer wraps its transform with those that the config asks for, from first to last in the table,
and what is measured and exported goes through their weights in the same order. What a field excludes
is said with the field (`Field.needs`). Parameter groups, gradual unfreezing and the decay towards the
pretrained weights shape the transform itself and are no `Idea`.
"""

from jaxft.experiment.ideas.averages import LATE_MEAN, MOVING_AVERAGE
from jaxft.experiment.ideas.schedule_free import SCHEDULE_FREE
from jaxft.experiment.ideas.sharpness_aware import SHARPNESS_AWARE
from jaxft.experiment.ideas.wise_ft import WISE_FT

IDEAS = (SCHEDULE_FREE, SHARPNESS_AWARE, MOVING_AVERAGE, LATE_MEAN, WISE_FT)
