"""Tiny random models of types without an adapter of their own: what the generic adapter is tested
on."""

import transformers as hf

from fopru.families.example import IMAGE, PATCH, PINPOINTS, SIDE, SQUARE, TEXT, VIDEO, VIT, Example

SQUARES = hf.CLIPImageProcessorPil(
    size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
)


def vipllava():
    """Two states of a CLIP tower side by side."""
    return Example(
        hf.VipLlavaConfig(
            vision_config=hf.CLIPVisionConfig(**VIT, **SQUARE, projection_dim=16),
            text_config=hf.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            vision_feature_layer=[-1, -2],
            vision_feature_layers=[-1, -2],  # as transformers 5.21 calls it
        ),
        SQUARES,
        named={"image_token": "<image>"},
        settings=dict(
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        ),
    )


def janus():
    """A model that also draws, with a second encoder."""
    vision = {k: v for k, v in VIT.items() if k != "intermediate_size"}
    return Example(
        hf.JanusConfig(
            vision_config=dict(**vision, **SQUARE, projection_dim=48, mlp_ratio=1.5),
            text_config=hf.LlamaConfig(**TEXT),
            vq_config=dict(
                embed_dim=8,
                num_embeddings=32,
                base_channels=32,
                channel_multiplier=[1, 1],
                latent_channels=32,
                num_patches=4,
                projection_dim=48,
                image_token_embed_dim=48,
                num_res_blocks=1,
            ),
            image_token_id=IMAGE,
        ),
        SQUARES,
    )


def got_ocr2():
    """SAM's encoder, made smaller by convolutions."""
    vision = dict(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        mlp_dim=48,
        image_size=32,
        patch_size=2,
        window_size=4,
        global_attn_indexes=[1, 2],
    )
    return Example(
        hf.GotOcr2Config(
            vision_config=vision, text_config=hf.Qwen2Config(**TEXT), image_token_index=IMAGE
        ),
        SQUARES,
    )


def deepseek_vl():
    """SigLIP."""
    return Example(
        hf.DeepseekVLConfig(
            vision_config=hf.SiglipVisionConfig(**VIT, **SQUARE),
            text_config=hf.LlamaConfig(**TEXT),
            image_token_id=IMAGE,
        ),
        SQUARES,
    )


def idefics2():
    """A resampler that makes as many tokens of every picture."""
    return Example(
        hf.Idefics2Config(
            vision_config=dict(**VIT, **SQUARE),
            perceiver_config=dict(
                hidden_size=48,
                resampler_n_latents=16,
                resampler_depth=2,
                resampler_n_heads=4,
                resampler_head_dim=12,
                num_key_value_heads=2,
            ),
            text_config=hf.MistralConfig(**TEXT),
            image_token_id=IMAGE,
        ),
        hf.Idefics2ImageProcessorPil(
            size={"shortest_edge": 24, "longest_edge": 32}, do_image_splitting=False
        ),
        runs=lambda found, rows: [f"w53 {'<image> ' * 16}w54" for row in rows for _ in row],
        nested=True,
    )


def llava_next_video():
    """LLaVA-NeXT's packing, newlines and all."""
    return Example(
        hf.LlavaNextVideoConfig(
            vision_config=hf.CLIPVisionConfig(**VIT, **SQUARE, projection_dim=16),
            text_config=hf.LlamaConfig(**TEXT),
            image_grid_pinpoints=PINPOINTS,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        ),
        hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=PINPOINTS,
        ),
    )


def video_llama_3():
    """Qwen's packing without its positions."""
    return Example(
        hf.VideoLlama3Config(
            vision_config=dict(**VIT, patch_size=PATCH),
            text_config=hf.Qwen2Config(**TEXT),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        hf.VideoLlama3ImageProcessorPil(
            patch_size=PATCH, merge_size=1, size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
        ),
    )


def exaone4_5():
    """Qwen2.5-VL's tower before a language model that counts."""
    vision = dict(
        depth=4,
        num_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        intermediate_size=48,
        out_hidden_size=48,
        patch_size=PATCH,
        window_size=4 * PATCH,
        fullatt_block_indexes=[1, 3],
    )
    return Example(
        hf.Exaone4_5_Config(
            vision_config=vision,
            text_config=hf.Exaone4Config(**TEXT, head_dim=12, sliding_window=512),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        hf.Qwen2VLImageProcessorPil(
            patch_size=PATCH, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
        ),
    )


def aria():
    """A resampler with cross-attention, and experts."""
    return Example(
        hf.AriaConfig(
            vision_config=hf.Idefics3VisionConfig(**VIT, **SQUARE),
            text_config=hf.AriaTextConfig(**TEXT, moe_num_experts=4, moe_topk=2),
            image_token_index=IMAGE,
            projector_patch_to_query_dict={64: 16},
        ),
        SQUARES,
    )


EXAMPLES = {
    make.__name__: make
    for make in (
        vipllava,
        janus,
        got_ocr2,
        deepseek_vl,
        idefics2,
        llava_next_video,
        video_llama_3,
        exaone4_5,
        aria,
    )
}
