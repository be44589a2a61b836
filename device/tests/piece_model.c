// SPDX-License-Identifier: Apache-2.0
#include "piece_model.h"

#include "small_model.h" // the operators of the whole model

#define SEED 20260107u
#define FC1_FIRST 9u // channels of the first chunk
#define HEAD_FIRST 2u

typedef struct {
    model_layer embedding, q, k, v, proj, fc1, fc2, head;
    uint32_t norm1, norm2, norm; // gamma and beta
} weights;

static void draw_weights(model_builder *b, weights *w) {
    draw_layer(&w->embedding, PIECE_DIM, 4);
    draw_layer(&w->q, PIECE_DIM, PIECE_DIM);
    draw_layer(&w->k, PIECE_DIM, PIECE_DIM);
    draw_layer(&w->v, PIECE_DIM, PIECE_DIM);
    draw_layer(&w->proj, PIECE_DIM, PIECE_DIM);
    draw_layer(&w->fc1, PIECE_HIDDEN, PIECE_DIM);
    draw_layer(&w->fc2, PIECE_DIM, PIECE_HIDDEN);
    draw_layer(&w->head, PIECE_CLASSES, PIECE_DIM);
    w->norm1 = builder_gamma_beta(b, PIECE_DIM);
    w->norm2 = builder_gamma_beta(b, PIECE_DIM);
    w->norm = builder_gamma_beta(b, PIECE_DIM);
}

static void set_tensors(model_builder *b, int in_pieces) {
    const uint32_t t = PIECE_TOKENS, d = PIECE_DIM, head = in_pieces ? PIECE_HEAD : PIECE_DIM;
    builder_tensor(b, P_IMAGE, "image", TVIT_U8, 8, 8, 0);
    builder_tensor(b, P_STREAM, "stream", TVIT_I16, t, d, 0);
    builder_tensor(b, P_X, "norm", TVIT_I8, t, d, 0);
    builder_tensor(b, P_O, "attn", TVIT_I8, t, d, 0);
    builder_tensor(b, P_K, "k", TVIT_I8, t, head, 0);
    builder_tensor(b, P_V, "v", TVIT_I8, t, head, 0);
    builder_tensor(b, P_HIDDEN, "fc1", TVIT_I8, in_pieces ? 16 : t, PIECE_HIDDEN, 0);
    builder_tensor(b, P_POOLED, "pool", TVIT_I16, 1, d, 0);
    builder_tensor(b, P_NORMED, "fc_norm", TVIT_I8, 1, d, 0);
    builder_tensor(b, P_LOGITS, "logits", TVIT_I16, 1, PIECE_CLASSES, 0);
}

static tvit_attention_params *set_attention(model_builder *b, int index, uint32_t heads, int k) {
    tvit_operator *op = builder_operator(b, index, "attn", TVIT_OP_ATTENTION, P_O, P_O);
    op->input[1] = (uint16_t)k;
    op->input[2] = P_V;
    op->param.attention = (tvit_attention_params){heads, PIECE_HEAD, 2, 20000, 40u << 16, 16, 0, 0, 0, 0};
    return &op->param.attention;
}

static void set_whole(model_builder *b, const weights *w) {
    const uint32_t t = PIECE_TOKENS, d = PIECE_DIM;
    builder_layernorm(b, NORM1, "norm1", P_STREAM, P_X, t, w->norm1);
    builder_linear(b, Q, "attn.q", P_X, P_O, t, &w->q, 0, d)->limit = 100;
    builder_linear(b, K, "attn.k", P_X, P_K, t, &w->k, 0, d);
    builder_linear(b, V, "attn.v", P_X, P_V, t, &w->v, 0, d);
    set_attention(b, ATTN, 2, P_K);
    builder_linear(b, PROJ, "attn.proj", P_O, P_STREAM, t, &w->proj, 0, d);
    b->operators[PROJ].flags = TVIT_OP_ADD;
    builder_layernorm(b, NORM2, "norm2", P_STREAM, P_X, t, w->norm2);
    builder_linear(b, FC1, "mlp.fc1", P_X, P_HIDDEN, t, &w->fc1, 0, PIECE_HIDDEN);
    builder_table(b, FC1);
    builder_linear(b, FC2, "mlp.fc2", P_HIDDEN, P_STREAM, t, &w->fc2, 0, d);
    b->operators[FC2].flags = TVIT_OP_ADD;
    builder_linear(b, HEAD, "head", P_NORMED, P_LOGITS, 1, &w->head, 0, PIECE_CLASSES);
}

static void set_heads(model_builder *b, const weights *w) {
    const uint32_t t = PIECE_TOKENS, h = PIECE_HEAD;
    builder_linear(b, P_Q0, "attn.q", P_X, P_O, t, &w->q, 0, h)->limit = 100;
    builder_linear(b, P_K0, "attn.k", P_X, P_O, t, &w->k, 0, h)->output_column = h;
    builder_linear(b, P_V0, "attn.v", P_X, P_V, t, &w->v, 0, h);
    set_attention(b, P_ATTN0, 1, P_O)->k_column = h;
    tvit_linear_params *q = builder_linear(b, P_Q1, "attn.q", P_X, P_O, t, &w->q, h, h);
    q->limit = 100;
    q->output_column = h;
    builder_linear(b, P_K1, "attn.k", P_X, P_K, t, &w->k, h, h);
    builder_linear(b, P_V1, "attn.v", P_X, P_V, t, &w->v, h, h);
    tvit_attention_params *attention = set_attention(b, P_ATTN1, 1, P_K);
    attention->q_column = attention->output_column = h;
}

static void set_mlp(model_builder *b, const weights *w) {
    builder_layernorm(b, P_NORM2_0, "norm2", P_STREAM, P_X, 16, w->norm2);
    builder_linear(b, P_FC1_00, "mlp.fc1", P_X, P_HIDDEN, 16, &w->fc1, 0, FC1_FIRST);
    builder_table(b, P_FC1_00);
    builder_linear(b, P_FC1_01, "mlp.fc1", P_X, P_HIDDEN, 16, &w->fc1, FC1_FIRST, PIECE_HIDDEN - FC1_FIRST)
        ->output_column = FC1_FIRST;
    builder_table(b, P_FC1_01);
    builder_linear(b, P_FC2_0, "mlp.fc2", P_HIDDEN, P_STREAM, 16, &w->fc2, 0, PIECE_DIM);
    b->operators[P_FC2_0].flags = TVIT_OP_ADD;
    // The second pass has the same weights.
    for (int i = 0; i < P_NORM2_1 - P_NORM2_0; i++)
        b->operators[P_NORM2_1 + i] = b->operators[P_NORM2_0 + i];
    b->operators[P_NORM2_1].param.layernorm.first_row = 16;
    b->operators[P_NORM2_1].param.layernorm.rows = PIECE_TOKENS - 16;
    for (int i = P_FC1_10; i <= P_FC2_1; i++)
        b->operators[i].param.linear.rows = PIECE_TOKENS - 16;
    b->operators[P_FC2_1].param.linear.output_row = 16;
}

static void set_pieces(model_builder *b, const weights *w) {
    builder_layernorm(b, P_NORM1, "norm1", P_STREAM, P_X, PIECE_TOKENS, w->norm1);
    set_heads(b, w);
    builder_linear(b, P_PROJ, "attn.proj", P_O, P_STREAM, PIECE_TOKENS, &w->proj, 0, PIECE_DIM);
    b->operators[P_PROJ].flags = TVIT_OP_ADD;
    set_mlp(b, w);
    builder_linear(b, P_HEAD0, "head", P_NORMED, P_LOGITS, 1, &w->head, 0, HEAD_FIRST);
    builder_linear(b, P_HEAD1, "head", P_NORMED, P_LOGITS, 1, &w->head, HEAD_FIRST, PIECE_CLASSES - HEAD_FIRST)
        ->output_column = HEAD_FIRST;
}

small_model piece_model_make(int in_pieces, uint32_t codec) {
    static model_builder b;
    static weights w;
    static const tvit_model_record info = {
        .image_height = 8,
        .image_width = 8,
        .image_channels = 1,
        .patch_size = 2,
        .tokens = PIECE_TOKENS,
        .prefix_tokens = 1,
        .embed_dim = PIECE_DIM,
        .depth = 1,
        .heads = 2,
        .head_dim = PIECE_HEAD,
        .mlp_dim = PIECE_HIDDEN,
        .classes = PIECE_CLASSES,
        .stream = P_STREAM,
        .logits = P_LOGITS,
    };
    uint32_t state = builder_seed(SEED); // the same weights each time, and what others draw undisturbed
    builder_start(&b, 0, codec);
    set_tensors(&b, in_pieces);
    draw_weights(&b, &w);
    builder_embedding(&b, P_EMBED, P_STREAM, 16, 1, &w.embedding);
    if (in_pieces)
        set_pieces(&b, &w);
    else
        set_whole(&b, &w);
    builder_operator(&b, in_pieces ? P_POOL : POOL, "pool", TVIT_OP_MEAN_POOL, P_STREAM, P_POOLED)->param.mean_pool =
        (tvit_mean_pool_params){1, 16};
    builder_layernorm(&b, in_pieces ? P_NORM : NORM, "fc_norm", P_POOLED, P_NORMED, 1, w.norm);
    builder_seed(state);
    return builder_finish(&b, &info, P_TENSORS, in_pieces ? P_OPERATORS : OPERATORS);
}
