"""An exported model put to use on image files: ``python -m fairquant.predict``, and the same from Python.

    from fairquant.predict import Predictor

    predictor = Predictor.open("models/export/model.onnx")
    for prediction in predictor.predict(["a.jpg", "b.png"]):
        print(prediction.image, prediction.label, prediction.probability)

An ONNX file needs neither torch nor onnx here, only numpy, Pillow, safetensors, tqdm and the runtime (docs/predict.md).
"""

from fairquant.predict.images import Unreadable
from fairquant.predict.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "Unreadable"]
