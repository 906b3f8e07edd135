_base_ = "./default_runtime.py"

default_hooks = dict(checkpoint=dict(interval=4000))
visualizer = dict(type="mmlocal.MultiTaskVisualizer")
