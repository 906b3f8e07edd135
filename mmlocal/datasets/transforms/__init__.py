"""Steps of data pipelines. They may need ``mmcv.transforms``, and no library of a task."""
