import pytest

from benchmarks.by_kind import kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "linear"),
        ("aten::mm", "linear"),
        ("aten::bmm", "window attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "window attention"),
        ("aten::convolution_backward", "convolution"),
        ("mmlocal::elsa_attention_backward", "local attention"),
        ("mmlocal_elsa_attention_default", "local attention"),
        ("mmlocal::grouped_conv2d", "convolution"),
        ("mmlocal::grouped_conv2d_backward", "convolution"),
        ("mmlocal_grouped_conv2d_default", "convolution"),
        ("aten::gelu_", "gelu"),
        ("aten::native_layer_norm_backward", "norm"),
        ("aten::copy_", "copy"),
        ("aten::add", "other"),
        ("aten::mul", "other"),
    ],
)
def test_kinds_of_operators(name, kind):
    assert kind_of(name) == kind


def test_a_convolution_of_one_pixel_is_linear():
    image, weight, wide = [2, 8, 1, 1], [4, 8, 1, 1], [4, 8, 3, 3]
    assert kind_of("aten::mkldnn_convolution", [image, weight]) == "linear"
    assert kind_of("aten::mkldnn_convolution", [image, wide]) == "convolution"
    assert kind_of("aten::convolution_backward", [image, image, weight]) == "linear"
    assert kind_of("aten::convolution_backward", [image, image, wide]) == "convolution"
