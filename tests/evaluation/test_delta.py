"""The relative change of all metrics, compared with the tables of the paper."""

import json
import re

import pytest

from mmlocal.evaluation.delta import delta, load_baseline
from mmlocal.tasks import find_tasks

NYUD = find_tasks(["semseg", "depth", "normals", "edge"])
PASCAL = find_tasks(["semseg", "human_parts", "sal", "normals", "edge"])
# The first row of each table is DeMT, its baseline. The last column is the published delta.
TABLES = {
    "nyud_hrnet18": (
        NYUD,
        [
            (0.3760, 0.6286, 20.80, 0.7718, 0),
            (0.4039, 0.5819, 20.34, 0.7712, 4.25),
            (0.3907, 0.5877, 20.41, 0.7721, 3.08),
            (0.3958, 0.5954, 20.34, 0.7737, 3.25),
            (0.4004, 0.5943, 20.30, 0.7732, 3.63),
        ],
    ),
    "nyud_swin_t": (
        NYUD,
        [
            (0.4636, 0.5871, 20.65, 0.7690, 0),
            (0.4292, 0.6104, 20.94, 0.7622, -3.42),
            (0.3878, 0.6312, 21.05, 0.7560, -6.87),
            (0.4361, 0.5979, 20.05, 0.7620, -1.44),
            (0.4806, 0.5567, 20.14, 0.7769, 3.08),
        ],
    ),
    "nyud_swin_s": (
        NYUD,
        [
            (0.5150, 0.5474, 20.02, 0.7810, 0),
            (0.4892, 0.5804, 20.94, 0.7720, -4.20),
            (0.4790, 0.6053, 21.17, 0.7690, -6.21),
            (0.4918, 0.5785, 20.81, 0.7700, -3.89),
            (0.5259, 0.5356, 19.87, 0.7859, 1.42),
        ],
    ),
    "pascal_hrnet18": (
        PASCAL,
        [
            (0.5582, 0.5708, 0.8417, 14.21, 0.7490, 0),
            (0.5821, 0.5706, 0.8453, 14.02, 0.7526, 1.29),
        ],
    ),
    "pascal_swin_t": (
        PASCAL,
        [
            (0.6971, 0.5718, 0.8263, 14.56, 0.7120, 0),
            (0.6781, 0.5632, 0.8218, 14.81, 0.7090, -1.38),
            (0.6474, 0.5325, 0.7688, 15.86, 0.6900, -6.60),
            (0.6824, 0.5705, 0.8340, 14.56, 0.7110, -0.31),
            (0.6987, 0.5828, 0.8485, 14.03, 0.7746, 3.46),
        ],
    ),
}
METRICS = {"semseg/mIoU": 0.5, "depth/RMSE": 0.6, "normals/mErr": 20.0, "edge/odsF": 0.75}


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_the_paper(table):
    tasks, rows = TABLES[table]
    keys = [task.metric_key for task in tasks]
    found = [[dict(zip(keys, row[:-1], strict=True)), row[-1]] for row in rows]
    worst = max(abs(delta(row, found[0][0], tasks) - published) for row, published in found)
    print(f"worst difference {worst:.3f}")
    assert worst < 0.021  # the metrics have three or four digits


def test_baseline_of_a_file(tmp_path):
    path = tmp_path / "test.json"
    path.write_text(json.dumps({**METRICS, "time": 0.1, "data_time": 0.0}))
    assert load_baseline(path, NYUD) == load_baseline(str(path), NYUD) == METRICS
    assert load_baseline(METRICS, NYUD[:1]) == {"semseg/mIoU": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth/RMSE": None}, "'depth/RMSE' must be a positive number, got None"),
        ({"depth/RMSE": 0}, "'depth/RMSE' must be a positive number, got 0"),
        ({"depth/RMSE": float("nan")}, "'depth/RMSE' must be a positive number, got nan"),
        ({"edge/odsF": 77.2}, "'edge/odsF' must be a fraction of 1, got 77.2"),
    ],
)
def test_wrong_baselines(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_baseline(METRICS | change, NYUD)


def test_wrong_baseline_files(tmp_path):
    path = tmp_path / "test.json"
    with pytest.raises(ValueError, match=r"test\.json is no readable JSON file"):
        load_baseline(path, NYUD)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"test\.json is no readable JSON file"):
        load_baseline(path, NYUD)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"must hold one object of metrics, got list"):
        load_baseline(path, NYUD)
    path.write_text('{"semseg/mIoU": 0.5}')
    with pytest.raises(ValueError, match=r"test\.json has no 'depth/RMSE', which delta needs"):
        load_baseline(path, NYUD)
