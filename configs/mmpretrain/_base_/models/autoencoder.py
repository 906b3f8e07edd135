# A config adds encoder and decoder.
model = dict(
    type="mmlocal.AutoEncoder",
    # Scale to [0, 1], without a change of contrast.
    data_preprocessor=dict(
        type="ImgDataPreprocessor",
        mean=[0.0, 0.0, 0.0],
        std=[255.0, 255.0, 255.0],
        bgr_to_rgb=True,
    ),
)

val_evaluator = dict(type="mmlocal.ReconstructionMetric")
test_evaluator = val_evaluator
