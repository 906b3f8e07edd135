"""Draw the local attention of a model on an image: attention received, and kernels side by side.

The same as ``mmlocal visualize-attention``.
"""

from mmlocal.cli import load

tool = load("visualize-attention")
parse_args = tool.parse_args

if __name__ == "__main__":
    tool.main()
