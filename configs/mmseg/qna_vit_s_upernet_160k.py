"""UPerNet with QnA-ViT-Small on ADE20K, 160k iterations.

Our extension: the settings are as in qna_vit_t_upernet_160k.py.
"""

_base_ = "./qna_vit_t_upernet_160k.py"

model = dict(backbone=dict(arch="small", drop_path_rate=0.2))
