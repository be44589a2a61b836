// SPDX-License-Identifier: Apache-2.0
#include "small_model.h"

static tvit_linear_params *set_linear(model_builder *b, int index, const char *name, int input, int output,
                                      uint32_t rows) {
    model_layer layer;
    draw_layer(&layer, b->tensors[output].columns, b->tensors[input].columns);
    return builder_linear(b, index, name, input, output, rows, &layer, 0, layer.n);
}

static void set_layernorm(model_builder *b, int index, const char *name, int input, int output, uint32_t rows) {
    builder_layernorm(b, index, name, input, output, rows, builder_gamma_beta(b, b->tensors[input].columns));
}

static void describe(model_builder *b) {
    const uint32_t t = SMALL_TOKENS, d = SMALL_DIM;
    int per_token = b->per_token != 0;
    builder_tensor(b, IMAGE, "image", TVIT_U8, 2, 4, 0);
    builder_tensor(b, STREAM, "stream", TVIT_I16, t, d, 0);
    builder_tensor(b, X, "norm1", TVIT_I8, t, d, per_token);
    builder_tensor(b, Q_OUT, "q", TVIT_I8, t, d, 0);
    builder_tensor(b, K_OUT, "k", TVIT_I8, t, d, 0);
    builder_tensor(b, V_OUT, "v", TVIT_I8, t, d, 0);
    builder_tensor(b, O, "attn", TVIT_I8, t, d, per_token);
    builder_tensor(b, X2, "norm2", TVIT_I8, t, d, per_token);
    builder_tensor(b, H, "fc1", TVIT_I8, t, SMALL_HIDDEN, per_token);
    builder_tensor(b, POOLED, "pool", TVIT_I16, 1, d, 0);
    builder_tensor(b, NORMED, "norm", TVIT_I8, 1, d, per_token);
    builder_tensor(b, LOGITS, "logits", TVIT_I16, 1, SMALL_CLASSES, 0);

    model_layer embedding;
    draw_layer(&embedding, d, 4);
    builder_embedding(b, EMBED, STREAM, 2, 1, &embedding);
    set_layernorm(b, NORM1, "norm1", STREAM, X, t);
    set_linear(b, Q, "attn.q", X, Q_OUT, t)->limit = 100;
    set_linear(b, K, "attn.k", X, K_OUT, t);
    set_linear(b, V, "attn.v", X, V_OUT, t);
    tvit_operator *attention = builder_operator(b, ATTN, "attn", TVIT_OP_ATTENTION, Q_OUT, O);
    attention->input[1] = K_OUT;
    attention->input[2] = V_OUT;
    uint32_t out_shift = per_token ? 8 : 16;
    attention->param.attention = (tvit_attention_params){2, 3, 2, 20000, 40u << out_shift, out_shift, 0, 0, 0, 0};
    set_linear(b, PROJ, "attn.proj", O, STREAM, t);
    b->operators[PROJ].flags = TVIT_OP_ADD;
    set_layernorm(b, NORM2, "norm2", STREAM, X2, t);
    set_linear(b, FC1, "mlp.fc1", X2, H, t);
    builder_table(b, FC1);
    set_linear(b, FC2, "mlp.fc2", H, STREAM, t);
    b->operators[FC2].flags = TVIT_OP_ADD;
    builder_operator(b, POOL, "pool", TVIT_OP_MEAN_POOL, STREAM, POOLED)->param.mean_pool =
        (tvit_mean_pool_params){1, 2};
    set_layernorm(b, NORM, "fc_norm", POOLED, NORMED, 1);
    set_linear(b, HEAD, "head", NORMED, LOGITS, 1);
}

small_model small_model_make(int per_token, uint32_t codec) {
    static model_builder b;
    static const tvit_model_record info = {
        .image_height = 2,
        .image_width = 4,
        .image_channels = 1,
        .patch_size = 2,
        .tokens = SMALL_TOKENS,
        .prefix_tokens = 1,
        .embed_dim = SMALL_DIM,
        .depth = 1,
        .heads = 2,
        .head_dim = 3,
        .mlp_dim = SMALL_HIDDEN,
        .classes = SMALL_CLASSES,
        .stream = STREAM,
        .logits = LOGITS,
    };
    builder_start(&b, per_token, codec);
    describe(&b);
    return builder_finish(&b, &info, TENSORS, OPERATORS);
}
