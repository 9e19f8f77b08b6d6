"""The schedule of the learning rate."""

import math


def warm_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate: it rises in the share `warmup` of the steps, then half a cosine leads to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
