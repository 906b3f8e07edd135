"""The same as ``mmlocal export-onnx``."""

from mmlocal.cli import load

tool = load("export-onnx")

if __name__ == "__main__":
    tool.main()
