"""The grey values of an image on their way to the browser, which sets window and level itself.

They travel inside the page, as every picture does, so no image has an address that another user of the app could ask
for. Twelve bits are as many as detectors have, and four more than a screen.
"""

import base64
import zlib

import numpy as np

from medsd.results.render import GreyImage

LARGEST = 4095  # 12 bits


def pack(image: GreyImage) -> str:
    """The image (H, W) in 0…1 as text for ``scripts/viewer.js``: base64 of deflate of 2·H·W bytes.

    Along the flattened rows each value is the step from the one before, 0, −1, 1, −2, … as 0, 1, 2, 3, …; the lower
    bytes of all steps stand before the upper ones, which are nearly all 0.
    """
    values = np.rint(np.clip(image, 0, 1) * LARGEST).astype(np.int16).ravel()
    steps = np.diff(values, prepend=np.int16(0))
    folded = ((steps << 1) ^ (steps >> 15)).astype(np.uint16)
    planes = np.concatenate([(folded & 255).astype(np.uint8), (folded >> 8).astype(np.uint8)])
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)  # of noise as small as any, in half the time
    return base64.b64encode(deflate.compress(planes.tobytes()) + deflate.flush()).decode("ascii")
