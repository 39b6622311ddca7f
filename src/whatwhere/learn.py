"""The names of arcgis.learn's pixel classification, without arcgis.

    from whatwhere.learn import UnetClassifier, prepare_data

A notebook that was written for arcgis.learn changes this line and runs. What each name does is in
`docs/how-to/from-arcgis.md`.
"""

from whatwhere.face.classifier import UnetClassifier
from whatwhere.face.data import SegmentationData
from whatwhere.face.prepare import prepare_data

__all__ = ["SegmentationData", "UnetClassifier", "prepare_data"]
