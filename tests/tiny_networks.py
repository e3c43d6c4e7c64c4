"""Networks that tests share, as small as their kind allows."""

UNET = {"widths": (4, 8, 8)}
TRANSUNET = {
    "resnet_blocks": (1, 1, 1),
    "resnet_width": 8,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_dim": 32,
    "decoder_widths": (8, 8, 8, 8, 4),
}
