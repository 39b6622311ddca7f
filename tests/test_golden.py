"""A bundle that an earlier version wrote answers as it did.

`golden/bundle-1/` was made once, by this:

    import json, numpy as np, torch
    from pathlib import Path
    from whatwhere import bundle
    from whatwhere.bundle import Card
    from whatwhere.nn.build import build_model, count_parameters, geometry
    from whatwhere.predict.backends import TorchBackend, note_answers
    from whatwhere.predict.engine import Predictor
    from whatwhere.types import Bands, Classes, ClassInfo, Normalization

    torch.manual_seed(1)
    net = build_model("tutorial", 1, 1, n_filters=1)
    net.train()
    for _ in range(30):  # statistics that no fresh net has
        net(torch.randn(4, 1, 48, 48))
    net.eval()
    infos = (ClassInfo("background", 0, (0, 0, 0), "background", (0,)),
             ClassInfo("salt", 255, (230, 159, 0), "class", (1, 255)))
    card = Card(model="tutorial", arguments={"n_filters": 1},
        parameters=count_parameters(net).total, classes=Classes(infos, "binary", (7,)),
        bands=Bands(("grey",), convert=True), normalization=Normalization((100.0,), (50.0,)),
        resize=None, chip_size=(48, 48), orientation="upright", geometry=geometry(net),
        pixel_size=None, thresholds=(0.5,), scores={"val_loss": 0.5}, tuning={}, objects={},
        self_test={}, recipe={}, data={}, versions={"torch": torch.__version__},
        created="2026-01-01T00:00:00+00:00")
    backend = TorchBackend(net, "binary")
    card = card.replace(self_test=note_answers(backend, card))
    folder = Path("tests/golden/bundle-1")
    bundle.save(folder, card, {k: v.numpy() for k, v in net.state_dict().items()})
    image = (np.arange(23 * 30) * 7919 % 256).reshape(1, 23, 30).astype(np.uint8)
    answer = Predictor(card, backend).probabilities(image)[0]
    text = json.dumps([[round(float(p), 7) for p in row] for row in answer])
    (folder / "answer.json").write_text(text)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from whatwhere.predict.engine import load

GOLDEN = Path(__file__).parent / "golden" / "bundle-1"


def test_the_first_formats_bundle_answers_as_it_did() -> None:
    image = (np.arange(23 * 30) * 7919 % 256).reshape(1, 23, 30).astype(np.uint8)
    wanted = np.array(json.loads((GOLDEN / "answer.json").read_bytes()))
    assert wanted.std() > 0.01
    found = load(GOLDEN, device="cpu")
    np.testing.assert_allclose(found.probabilities(image)[0], wanted, rtol=0, atol=1e-5)
    assert set(np.unique(found.predict(image))) <= {0, 1}
    assert found.card.classes.names == ["background", "salt"]


def test_the_golden_bundle_stays_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 60_000
