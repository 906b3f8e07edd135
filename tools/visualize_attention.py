"""Draw the local attention of a model on an image: attention received, and kernels side by side.

The same as ``mmlocal visualize-attention``.
"""

from mmlocal.cli import load

tool = load("visualize-attention")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
