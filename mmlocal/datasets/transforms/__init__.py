"""Steps of data pipelines. They may need ``mmcv.transforms``, and no other OpenMMLab library."""
