// RUN: moeloom-opt %s --split-input-file --verify-diagnostics
// One case for every rule of the verifiers in dialects/moe.py and dialects/moe_rules.py; test/dialects/test_rules.py
// proves that each case fails without its rule.

// Declared constraints, which IRDL checks before the rules.
func.func @segments_are_required(%rows: tensor<?x64xf32>, %ids: tensor<?x2xi32>) {
  // expected-error@below {{'operandSegmentSizes' attribute is expected but not provided}}
  %0 = "moe.combine"(%rows, %ids) : (tensor<?x64xf32>, tensor<?x2xi32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @operands_are_ranked_tensors(%rows: f32, %ids: tensor<?x2xi32>) {
  // expected-error@below {{expected base type 'builtin.tensor' but got 'builtin.f32'}}
  %0 = "moe.combine"(%rows, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (f32, tensor<?x2xi32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @attributes_are_required(%x: tensor<?x64xbf16>) {
  // expected-error@below {{attribute "scale_mode" is expected but not provided}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x32"} : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return
}

// -----

func.func @route_logits_rank(%logits: tensor<?x?x8xbf16>) {
  // expected-error@below {{'moe.route' logits has rank 3; it must be 2}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @route_logits_element(%logits: tensor<?x8xi32>) {
  // expected-error@below {{'moe.route' logits has element type i32; it must be bf16 or f16 or f32}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xi32>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @route_dynamic_experts(%logits: tensor<?x?xbf16>) {
  // expected-error@below {{'moe.route' logits is tensor<?x?xbf16>; axis 1 must have a static size}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x?xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @route_topk_zero(%logits: tensor<?x8xbf16>) {
  // expected-error@below {{'moe.route' topk is 0; it must be 1 to 8}}
  %0:2 = "moe.route"(%logits) {topk = 0 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x0xf32>, tensor<?x0xi32>)
  return
}

// -----

func.func @route_topk_above_experts(%logits: tensor<?x8xbf16>) {
  // expected-error@below {{'moe.route' topk is 9; it must be 1 to 8}}
  %0:2 = "moe.route"(%logits) {topk = 9 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x9xf32>, tensor<?x9xi32>)
  return
}

// -----

func.func @route_score(%logits: tensor<?x8xbf16>) {
  // expected-error@below {{'moe.route' score is 'tanh'; it must be softmax_after_topk or softmax_before_topk or sigmoid}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "tanh", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @route_weights_shape(%logits: tensor<?x8xbf16>) {
  // expected-error@below {{'moe.route' weights is tensor<?x3xf32>; its shape must be ?x2}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x3xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @route_weights_element(%logits: tensor<?x8xbf16>) {
  // expected-error@below {{'moe.route' weights has element type bf16; it must be f32}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x2xbf16>, tensor<?x2xi32>)
  return
}

// -----

func.func @route_ids_shape(%logits: tensor<?x8xbf16>) {
  // expected-error@below {{'moe.route' ids is tensor<?x3xi32>; its shape must be ?x2}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x3xi32>)
  return
}

// -----

func.func @route_ids_element(%logits: tensor<?x8xbf16>) {
  // expected-error@below {{'moe.route' ids has element type i64; it must be i32}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi64>)
  return
}

// -----

func.func @route_bias_shape(%logits: tensor<?x8xbf16>, %correction_bias: tensor<7xf32>) {
  // expected-error@below {{'moe.route' correction_bias is tensor<7xf32>; its shape must be 8}}
  %0:2 = "moe.route"(%logits, %correction_bias) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 1, 0>}
      : (tensor<?x8xbf16>, tensor<7xf32>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @route_bias_element(%logits: tensor<?x8xbf16>, %correction_bias: tensor<8xbf16>) {
  // expected-error@below {{'moe.route' correction_bias has element type bf16; it must be f32}}
  %0:2 = "moe.route"(%logits, %correction_bias) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 1, 0>}
      : (tensor<?x8xbf16>, tensor<8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @num_tokens_shape(%logits: tensor<?x8xbf16>, %num_tokens: tensor<2xi32>) {
  // expected-error@below {{'moe.route' num_tokens is tensor<2xi32>; its shape must be 1}}
  %0:2 = "moe.route"(%logits, %num_tokens) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 1>}
      : (tensor<?x8xbf16>, tensor<2xi32>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @num_tokens_element(%logits: tensor<?x8xbf16>, %num_tokens: tensor<1xi64>) {
  // expected-error@below {{'moe.route' num_tokens has element type i64; it must be i32}}
  %0:2 = "moe.route"(%logits, %num_tokens) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 1>}
      : (tensor<?x8xbf16>, tensor<1xi64>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @route_groups(%logits: tensor<?x8xbf16>) {
  // expected-error@below {{'moe.route' groups is 3; it must divide the 8 experts}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 3 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @route_groups_zero(%logits: tensor<?x8xbf16>) {
  // expected-error@below {{'moe.route' groups is 0; it must divide the 8 experts}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 0 : i64,
        top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @route_top_groups(%logits: tensor<?x8xbf16>) {
  // expected-error@below {{'moe.route' top_groups is 2; it must be 1 to 1}}
  %0:2 = "moe.route"(%logits) {topk = 2 : i64, score = "sigmoid", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
        top_groups = 2 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return
}

// -----

func.func @experts_activation(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' activation is 'relu'; it must be silu or swiglu or gelu or gelu_tanh}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "relu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_order(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up_order is 'swapped'; it must be interleaved or concatenated}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "swapped",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_weight_order(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' weight_order is 'mk'; it must be nk or kn}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "mk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_x_rank(
    %x: tensor<1x?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' x has rank 3; it must be 2}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<1x?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_x_element(
    %x: tensor<?x64xf32>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' x has element type f32; it must be bf16 or f16 or f4E2M1FN}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xf32>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_x_dynamic(
    %x: tensor<?x?xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' x is tensor<?x?xbf16>; axis 1 must have a static size}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x?xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_x_columns(
    %x: tensor<?x60xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' x has 60 columns; they must be a multiple of 32}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x60xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_codes_without_scales(
    %x: tensor<?x64xf4E2M1FN>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' x is f4E2M1FN, without x_scales; x_scales goes with quantised x, and only with it}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xf4E2M1FN>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_values_with_scales(
    %x: tensor<?x64xbf16>, %x_scales: tensor<?x2xf8E8M0FNU>, %ids: tensor<?x2xi32>,
    %weights: tensor<?x2xf32>, %gate_up: tensor<4x128x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' x is bf16, with x_scales; x_scales goes with quantised x, and only with it}}
  %0 = "moe.experts"(%x, %x_scales, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xf8E8M0FNU>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_x_scales_shape(
    %x: tensor<?x64xf4E2M1FN>, %x_scales: tensor<?x3xf8E8M0FNU>, %ids: tensor<?x2xi32>,
    %weights: tensor<?x2xf32>, %gate_up: tensor<4x128x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' x_scales is tensor<?x3xf8E8M0FNU>; its shape must be ?x2}}
  %0 = "moe.experts"(%x, %x_scales, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xf4E2M1FN>, tensor<?x3xf8E8M0FNU>, tensor<?x2xi32>, tensor<?x2xf32>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_x_scales_element(
    %x: tensor<?x64xf4E2M1FN>, %x_scales: tensor<?x2xf32>, %ids: tensor<?x2xi32>,
    %weights: tensor<?x2xf32>, %gate_up: tensor<4x128x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' x_scales has element type f32; it must be f8E8M0FNU}}
  %0 = "moe.experts"(%x, %x_scales, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xf4E2M1FN>, tensor<?x2xf32>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_ids_rank(
    %x: tensor<?x64xbf16>, %ids: tensor<?xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' ids has rank 1; it must be 2}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_ids_rows(
    %x: tensor<4x64xbf16>, %ids: tensor<5x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' ids is tensor<5x2xi32>; its shape must be 4x?}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<4x64xbf16>, tensor<5x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_ids_element(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' ids has element type i64; it must be i32}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi64>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_ids_dynamic_slots(
    %x: tensor<?x64xbf16>, %ids: tensor<?x?xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' ids is tensor<?x?xi32>; axis 1 must have a static size}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x?xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_ids_no_slots(
    %x: tensor<?x64xbf16>, %ids: tensor<?x0xi32>, %weights: tensor<?x0xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' ids has 0 slots a token; it must be 1 to 255}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x0xi32>, tensor<?x0xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_ids_many_slots(
    %x: tensor<?x64xbf16>, %ids: tensor<?x256xi32>, %weights: tensor<?x256xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' ids has 256 slots a token; it must be 1 to 255}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x256xi32>, tensor<?x256xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_many_tokens(
    %x: tensor<16777216x64xbf16>, %ids: tensor<16777216x2xi32>, %weights: tensor<16777216x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' ids has 16777216 tokens; there must be fewer than 16777216}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<16777216x64xbf16>, tensor<16777216x2xi32>, tensor<16777216x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<16777216x64xbf16>
  return
}

// -----

func.func @experts_weights_shape(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x3xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' weights is tensor<?x3xf32>; its shape must be ?x2}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x3xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_weights_element(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xbf16>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' weights has element type bf16; it must be f32}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xbf16>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_out_shape(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' out is tensor<?x96xbf16>; its shape must be ?x64}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x96xbf16>
  return
}

// -----

func.func @experts_out_element(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' out has element type f32; it must be bf16 or f16}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xf32>
  return
}

// -----

func.func @experts_gate_up_rank(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>, %gate_up: tensor<64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up has rank 1; it must be 3}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>,
         tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_dynamic(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x?x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up is tensor<4x?x64xf4E2M1FN>; axis 1 must have a static size}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x?x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_rows(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x96x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up has 96 rows; gate and up need a multiple of 32 each}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x96x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_columns(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x96xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up is tensor<4x128x96xf4E2M1FN>; its shape must be ?x128x64}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x96xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_element(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>, %gate_up: tensor<4x128x64xi8>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up has element type i8; it must be f4E2M1FN or bf16 or f16 or f32}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xi8>, tensor<4x128x2xf8E8M0FNU>,
         tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_count(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<?x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up is tensor<?x128x64xf4E2M1FN>; axis 0 must have a static size}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<?x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_scales_missing(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up is f4E2M1FN, without gate_up_scales; gate_up_scales goes with quantised gate_up, and only with it}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_scales_left_over(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xbf16>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up is bf16, with gate_up_scales; gate_up_scales goes with quantised gate_up, and only with it}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xbf16>, tensor<4x128x2xf8E8M0FNU>,
         tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_scales_shape(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x3xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up_scales is tensor<4x128x3xf8E8M0FNU>; its shape must be 4x128x2}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x3xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_scales_element(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xi8>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up_scales has element type i8; it must be f8E8M0FNU}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xi8>,
         tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_packed_kn(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x64x128xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up is f4E2M1FN in weight_order kn; it must be nk}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x128xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_kn_shape(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x96x128xbf16>, %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up is tensor<4x96x128xbf16>; its shape must be ?x64x128}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x96x128xbf16>, tensor<4x64x64xf4E2M1FN>,
         tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_bias_shape(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %gate_up_bias: tensor<4x64xbf16>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up_bias is tensor<4x64xbf16>; its shape must be 4x128}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %gate_up_bias, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64xbf16>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_gate_up_bias_element(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %gate_up_bias: tensor<4x128xi32>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' gate_up_bias has element type i32; it must be bf16 or f16 or f32}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %gate_up_bias, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x128xi32>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_down_experts(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<5x64x64xf4E2M1FN>, %down_scales: tensor<5x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' down is tensor<5x64x64xf4E2M1FN>; its shape must be 4x?x?}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<5x64x64xf4E2M1FN>, tensor<5x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_down_shape(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x96x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts' down is tensor<4x96x64xf4E2M1FN>; its shape must be ?x64x64}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x96x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_down_bias_shape(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>, %down_bias: tensor<4x96xbf16>) {
  // expected-error@below {{'moe.experts' down_bias is tensor<4x96xbf16>; its shape must be 4x64}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales, %down_bias) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>, tensor<4x96xbf16>)
      -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_down_bias_element(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>, %down_bias: tensor<4x64xi32>) {
  // expected-error@below {{'moe.experts' down_bias has element type i32; it must be bf16 or f16 or f32}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales, %down_bias) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>, tensor<4x64xi32>)
      -> tensor<?x64xbf16>
  return
}

// -----

func.func @expert_map_rank(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>, %expert_map: tensor<1x8xi1>) {
  // expected-error@below {{'moe.experts' expert_map has rank 2; it must be 1}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales, %expert_map) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>, tensor<1x8xi1>)
      -> tensor<?x64xbf16>
  return
}

// -----

func.func @expert_map_element(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>, %expert_map: tensor<8xi64>) {
  // expected-error@below {{'moe.experts' expert_map has element type i64; it must be i1 or i32}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales, %expert_map) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>, tensor<8xi64>)
      -> tensor<?x64xbf16>
  return
}

// -----

func.func @expert_map_dynamic(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>, %expert_map: tensor<?xi1>) {
  // expected-error@below {{'moe.experts' expert_map is tensor<?xi1>; axis 0 must have a static size}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales, %expert_map) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>, tensor<?xi1>)
      -> tensor<?x64xbf16>
  return
}

// -----

func.func @experts_num_tokens(
    %x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>, %num_tokens: tensor<2xi32>) {
  // expected-error@below {{'moe.experts' num_tokens is tensor<2xi32>; its shape must be 1}}
  %0 = "moe.experts"(%x, %ids, %weights, %gate_up, %gate_up_scales, %down, %down_scales, %num_tokens) {activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated",
        weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>, tensor<2xi32>)
      -> tensor<?x64xbf16>
  return
}

// -----

func.func @sort_tokens_block(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' block is 48; it must be 8 or 16 or 32 or 64 or 128 or 144}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 48 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_experts(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' experts is 0; there must be at least one}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 0 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_ids(%ids: tensor<?xi32>, %weights: tensor<?x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' ids has rank 1; it must be 2}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_weights_shape(%ids: tensor<?x2xi32>, %weights: tensor<?x3xf32>) {
  // expected-error@below {{'moe.sort_tokens' weights is tensor<?x3xf32>; its shape must be ?x2}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x3xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_weights_element(%ids: tensor<?x2xi32>, %weights: tensor<?x2xbf16>) {
  // expected-error@below {{'moe.sort_tokens' weights has element type bf16; it must be f32}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xbf16>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_num_tokens(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>, %num_tokens: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_tokens' num_tokens is tensor<2xi32>; its shape must be 1}}
  %0:4 = "moe.sort_tokens"(%ids, %weights, %num_tokens) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>, tensor<2xi32>)
      -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_map_rank(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>, %expert_map: tensor<1x4xi1>) {
  // expected-error@below {{'moe.sort_tokens' expert_map has rank 2; it must be 1}}
  %0:4 = "moe.sort_tokens"(%ids, %weights, %expert_map) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 1>}
      : (tensor<?x2xi32>, tensor<?x2xf32>, tensor<1x4xi1>)
      -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_map(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>, %expert_map: tensor<5xi1>) {
  // expected-error@below {{'moe.sort_tokens' expert_map is tensor<5xi1>; its shape must be 4}}
  %0:4 = "moe.sort_tokens"(%ids, %weights, %expert_map) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 1>}
      : (tensor<?x2xi32>, tensor<?x2xf32>, tensor<5xi1>)
      -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_sorted_ids_rank(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' sorted_ids has rank 2; it must be 1}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?x1xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_sorted_ids_capacity(%ids: tensor<3x2xi32>, %weights: tensor<3x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' sorted_ids is tensor<131xi32>; its shape must be 132}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<3x2xi32>, tensor<3x2xf32>) -> (tensor<131xi32>, tensor<132xf32>, tensor<5xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_sorted_weights_capacity(%ids: tensor<3x2xi32>, %weights: tensor<3x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' sorted_weights is tensor<131xf32>; its shape must be 132}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<3x2xi32>, tensor<3x2xf32>) -> (tensor<132xi32>, tensor<131xf32>, tensor<5xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_expert_ids_capacity(%ids: tensor<3x2xi32>, %weights: tensor<3x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' expert_ids is tensor<4xi32>; its shape must be 5}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<3x2xi32>, tensor<3x2xf32>) -> (tensor<132xi32>, tensor<132xf32>, tensor<4xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_sorted_ids_element(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' sorted_ids has element type i64; it must be i32}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi64>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_sorted_weights_element(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' sorted_weights has element type bf16; it must be f32}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xbf16>, tensor<?xi32>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_expert_ids_element(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' expert_ids has element type i64; it must be i32}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi64>, tensor<2xi32>)
  return
}

// -----

func.func @sort_tokens_num_valid_shape(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' num_valid is tensor<1xi32>; its shape must be 2}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<1xi32>)
  return
}

// -----

func.func @sort_tokens_num_valid_element(%ids: tensor<?x2xi32>, %weights: tensor<?x2xf32>) {
  // expected-error@below {{'moe.sort_tokens' num_valid has element type i64; it must be i32}}
  %0:4 = "moe.sort_tokens"(%ids, %weights) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi64>)
  return
}

// -----

func.func @quant_kind(%x: tensor<?x64xbf16>) {
  // expected-error@below {{'moe.quant' kind is 'per_row'; it must be per_1x32 or per_token or per_tensor or per_1x128}}
  %0:2 = "moe.quant"(%x) {kind = "per_row", scale_mode = "even"}
      : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return
}

// -----

func.func @quant_x_rank(%x: tensor<?xbf16>) {
  // expected-error@below {{'moe.quant' x has rank 1; it must be 2}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
      : (tensor<?xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return
}

// -----

func.func @quant_x_element(%x: tensor<?x64xf32>) {
  // expected-error@below {{'moe.quant' x has element type f32; it must be bf16 or f16}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
      : (tensor<?x64xf32>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return
}

// -----

func.func @quant_x_dynamic(%x: tensor<?x?xbf16>) {
  // expected-error@below {{'moe.quant' x is tensor<?x?xbf16>; axis 1 must have a static size}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
      : (tensor<?x?xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return
}

// -----

func.func @quant_codes_shape(%x: tensor<?x64xbf16>) {
  // expected-error@below {{'moe.quant' codes is tensor<?x32xf4E2M1FN>; its shape must be ?x64}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
      : (tensor<?x64xbf16>) -> (tensor<?x32xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return
}

// -----

func.func @quant_codes_element(%x: tensor<?x64xbf16>) {
  // expected-error@below {{'moe.quant' codes has element type i8; it must be f4E2M1FN}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
      : (tensor<?x64xbf16>) -> (tensor<?x64xi8>, tensor<?x2xf8E8M0FNU>)
  return
}

// -----

func.func @quant_scale_mode(%x: tensor<?x64xbf16>) {
  // expected-error@below {{'moe.quant' scale_mode is 'nearest'; it must be even or floor or ceil or rceil}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "nearest"}
      : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return
}

// -----

func.func @quant_columns(%x: tensor<?x48xbf16>) {
  // expected-error@below {{'moe.quant' x has 48 columns; they must be a multiple of 32}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
      : (tensor<?x48xbf16>) -> (tensor<?x48xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return
}

// -----

func.func @quant_scales_shape(%x: tensor<?x64xbf16>) {
  // expected-error@below {{'moe.quant' scales is tensor<?x3xf8E8M0FNU>; its shape must be ?x2}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
      : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x3xf8E8M0FNU>)
  return
}

// -----

func.func @quant_scales_element(%x: tensor<?x64xbf16>) {
  // expected-error@below {{'moe.quant' scales has element type f32; it must be f8E8M0FNU}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"}
      : (tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf32>)
  return
}

// -----

func.func @quant_per_token_scale_mode(%x: tensor<?x256xbf16>) {
  // expected-error@below {{'moe.quant' scale_mode is 'even'; it must be none}}
  %0:2 = "moe.quant"(%x) {kind = "per_token", scale_mode = "even"}
      : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<?x1xf32>)
  return
}

// -----

func.func @quant_per_token_codes(%x: tensor<?x256xbf16>) {
  // expected-error@below {{'moe.quant' codes has element type f4E2M1FN; it must be f8E4M3FN}}
  %0:2 = "moe.quant"(%x) {kind = "per_token", scale_mode = "none"}
      : (tensor<?x256xbf16>) -> (tensor<?x256xf4E2M1FN>, tensor<?x1xf32>)
  return
}

// -----

func.func @quant_per_token_scales_element(%x: tensor<?x256xbf16>) {
  // expected-error@below {{'moe.quant' scales has element type bf16; it must be f32}}
  %0:2 = "moe.quant"(%x) {kind = "per_token", scale_mode = "none"}
      : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<?x1xbf16>)
  return
}

// -----

func.func @quant_per_token_scales(%x: tensor<?x256xbf16>) {
  // expected-error@below {{'moe.quant' scales is tensor<?x2xf32>; its shape must be ?x1}}
  %0:2 = "moe.quant"(%x) {kind = "per_token", scale_mode = "none"}
      : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<?x2xf32>)
  return
}

// -----

func.func @quant_per_tensor_scales(%x: tensor<?x256xbf16>) {
  // expected-error@below {{'moe.quant' scales is tensor<2xf32>; its shape must be 1}}
  %0:2 = "moe.quant"(%x) {kind = "per_tensor", scale_mode = "none"}
      : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<2xf32>)
  return
}

// -----

func.func @quant_per_1x128_columns(%x: tensor<?x192xbf16>) {
  // expected-error@below {{'moe.quant' x has 192 columns; per_1x128 needs a multiple of 128}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x128", scale_mode = "none"}
      : (tensor<?x192xbf16>) -> (tensor<?x192xf8E4M3FN>, tensor<?x2xf32>)
  return
}

// -----

func.func @quant_per_1x128_scales(%x: tensor<?x256xbf16>) {
  // expected-error@below {{'moe.quant' scales is tensor<?x3xf32>; its shape must be ?x2}}
  %0:2 = "moe.quant"(%x) {kind = "per_1x128", scale_mode = "none"}
      : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<?x3xf32>)
  return
}

// -----

func.func @sort_scales_rank(%scales: tensor<?xf8E8M0FNU>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' scales has rank 1; it must be 2}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_element(%scales: tensor<?x2xi8>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' scales has element type i8; it must be f8E8M0FNU or f32}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xi8>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_dynamic(
    %scales: tensor<?x?xf8E8M0FNU>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' scales is tensor<?x?xf8E8M0FNU>; axis 1 must have a static size}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x?xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_stage(
    %scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' stage is 3; it must be 1 or 2}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 3 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_topk(%scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' topk is 0; it must be 1 to 255}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 0 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_layout(
    %scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' layout is 'tiled'; it must be tiled_32x8 or row_major}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_ids_rank(
    %scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<?x1xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' sorted_ids has rank 2; it must be 1}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?x1xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_ids_element(
    %scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<?xi64>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' sorted_ids has element type i64; it must be i32}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi64>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_num_valid_shape(
    %scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<1xi32>) {
  // expected-error@below {{'moe.sort_scales' num_valid is tensor<1xi32>; its shape must be 2}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<1xi32>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_num_valid_element(
    %scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi64>) {
  // expected-error@below {{'moe.sort_scales' num_valid has element type i64; it must be i32}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi64>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_columns_unpadded(
    %scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' sorted_scales is tensor<?x2xf8E8M0FNU>; its shape must be ?x8}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x2xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_rows(
    %scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<132xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' sorted_scales is tensor<132x8xf8E8M0FNU>; its shape must be 160x8}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xf8E8M0FNU>, tensor<132xi32>, tensor<2xi32>) -> tensor<132x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_row_major_padded(
    %scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' sorted_scales is tensor<?x8xf8E8M0FNU>; its shape must be ?x2}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "row_major"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return
}

// -----

func.func @sort_scales_result_element(
    %scales: tensor<?x2xf8E8M0FNU>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.sort_scales' sorted_scales has element type f32; it must be f8E8M0FNU}}
  %0 = "moe.sort_scales"(%scales, %sorted_ids, %num_valid) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf32>
  return
}

// -----

func.func @quant_sort_kind(%x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.quant_sort' kind is 'per_token'; it must be per_1x32}}
  %0:2 = "moe.quant_sort"(%x, %sorted_ids, %num_valid) {kind = "per_token", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return
}

// -----

func.func @quant_sort_scale_mode(%x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.quant_sort' scale_mode is 'none'; it must be even or floor or ceil or rceil}}
  %0:2 = "moe.quant_sort"(%x, %sorted_ids, %num_valid) {kind = "per_1x32", scale_mode = "none", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return
}

// -----

func.func @quant_sort_x_rank(%x: tensor<?xbf16>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.quant_sort' x has rank 1; it must be 2}}
  %0:2 = "moe.quant_sort"(%x, %sorted_ids, %num_valid) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return
}

// -----

func.func @quant_sort_x_element(%x: tensor<?x64xf32>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.quant_sort' x has element type f32; it must be bf16 or f16}}
  %0:2 = "moe.quant_sort"(%x, %sorted_ids, %num_valid) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x64xf32>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return
}

// -----

func.func @quant_sort_columns(%x: tensor<?x60xbf16>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.quant_sort' x has 60 columns; they must be a multiple of 32}}
  %0:2 = "moe.quant_sort"(%x, %sorted_ids, %num_valid) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x60xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return
}

// -----

func.func @quant_sort_codes_shape(%x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.quant_sort' codes is tensor<?x32xf4E2M1FN>; its shape must be ?x64}}
  %0:2 = "moe.quant_sort"(%x, %sorted_ids, %num_valid) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x32xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return
}

// -----

func.func @quant_sort_codes_element(%x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.quant_sort' codes has element type i8; it must be f4E2M1FN}}
  %0:2 = "moe.quant_sort"(%x, %sorted_ids, %num_valid) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x64xi8>, tensor<?x8xf8E8M0FNU>)
  return
}

// -----

func.func @quant_sort_sorted_columns(%x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.quant_sort' sorted_scales is tensor<?x2xf8E8M0FNU>; its shape must be ?x8}}
  %0:2 = "moe.quant_sort"(%x, %sorted_ids, %num_valid) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  return
}

// -----

func.func @quant_sort_scales_element(%x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %num_valid: tensor<2xi32>) {
  // expected-error@below {{'moe.quant_sort' sorted_scales has element type f32; it must be f8E8M0FNU}}
  %0:2 = "moe.quant_sort"(%x, %sorted_ids, %num_valid) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x64xf4E2M1FN>, tensor<?x8xf32>)
  return
}

// -----

func.func @gate_up_activation(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' activation is 'relu'; it must be silu or swiglu or gelu or gelu_tanh}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "relu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_gate_up_order(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' gate_up_order is 'swapped'; it must be interleaved or concatenated}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "swapped", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_topk(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' topk is 256; it must be 1 to 255}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 256 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_block(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' block is 4; it must be 8 or 16 or 32 or 64 or 128 or 144}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 4 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_weight_order(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' weight_order is 'mk'; it must be nk or kn}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "mk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_x_rank(
    %x: tensor<?xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>, %num_valid: tensor<2xi32>,
    %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' x has rank 1; it must be 2}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_x_element(
    %x: tensor<?x64xf32>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' x has element type f32; it must be bf16 or f16 or f4E2M1FN or f8E4M3FN}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xf32>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_x_columns(
    %x: tensor<?x60xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' x has 60 columns; they must be a multiple of 32}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x60xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_codes_without_scales(
    %x: tensor<?x64xf4E2M1FN>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' x is f4E2M1FN, without x_scales; x_scales goes with quantised x, and only with it}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xf4E2M1FN>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_x_scales_rank(
    %x: tensor<?x64xf4E2M1FN>, %x_scales: tensor<?xf8E8M0FNU>, %sorted_ids: tensor<?xi32>,
    %expert_ids: tensor<?xi32>, %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>,
    %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' x_scales has rank 1; it must be 2}}
  %0 = "moe.gate_up"(%x, %x_scales, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xf4E2M1FN>, tensor<?xf8E8M0FNU>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_sorted_ids_rank(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?x1xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' sorted_ids has rank 2; it must be 1}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?x1xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_expert_ids_rank(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?x1xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' expert_ids has rank 2; it must be 1}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?x1xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_expert_ids_element(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi64>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' expert_ids has element type i64; it must be i32}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi64>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_sorted_weights_rank(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %sorted_weights: tensor<?x1xf32>, %weight: tensor<4x128x64xf4E2M1FN>,
    %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' sorted_weights has rank 2; it must be 1}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?x1xf32>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_sorted_weights_element(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %sorted_weights: tensor<?xbf16>, %weight: tensor<4x128x64xf4E2M1FN>,
    %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' sorted_weights has element type bf16; it must be f32}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xbf16>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_out_rank(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' out has rank 1; it must be 2}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?xbf16>
  return
}

// -----

func.func @gate_up_out_element(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' out has element type f32; it must be bf16}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xf32>
  return
}

// -----

func.func @gate_up_out_dynamic(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' out is tensor<?x?xbf16>; axis 1 must have a static size}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x?xbf16>
  return
}

// -----

func.func @gate_up_weight_shape(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x64x64xf4E2M1FN>, %weight_scales: tensor<4x128x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.gate_up' weight is tensor<4x64x64xf4E2M1FN>; its shape must be ?x128x64}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x64x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_bias_shape(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>,
    %weight_scales: tensor<4x128x2xf8E8M0FNU>, %bias: tensor<4x64xbf16>) {
  // expected-error@below {{'moe.gate_up' bias is tensor<4x64xbf16>; its shape must be 4x128}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales, %bias) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 1>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64xbf16>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @gate_up_bias_element(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x128x64xf4E2M1FN>,
    %weight_scales: tensor<4x128x2xf8E8M0FNU>, %bias: tensor<4x128xi32>) {
  // expected-error@below {{'moe.gate_up' bias has element type i32; it must be bf16 or f16 or f32}}
  %0 = "moe.gate_up"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales, %bias) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 1>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x128xi32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @down_block(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x96x64xf4E2M1FN>, %weight_scales: tensor<4x96x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.down' block is 4; it must be 8 or 16 or 32 or 64 or 128 or 144}}
  %0 = "moe.down"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 4 : i64, weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x96x64xf4E2M1FN>,
         tensor<4x96x2xf8E8M0FNU>) -> tensor<?x96xf32>
  return
}

// -----

func.func @down_out_rank(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x96x64xf4E2M1FN>, %weight_scales: tensor<4x96x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.down' out has rank 1; it must be 2}}
  %0 = "moe.down"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x96x64xf4E2M1FN>,
         tensor<4x96x2xf8E8M0FNU>) -> tensor<?xf32>
  return
}

// -----

func.func @down_out_element(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x96x64xf4E2M1FN>, %weight_scales: tensor<4x96x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.down' out has element type bf16; it must be f32}}
  %0 = "moe.down"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x96x64xf4E2M1FN>,
         tensor<4x96x2xf8E8M0FNU>) -> tensor<?x96xbf16>
  return
}

// -----

func.func @down_out_dynamic(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x96x64xf4E2M1FN>, %weight_scales: tensor<4x96x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.down' out is tensor<?x?xf32>; axis 1 must have a static size}}
  %0 = "moe.down"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x96x64xf4E2M1FN>,
         tensor<4x96x2xf8E8M0FNU>) -> tensor<?x?xf32>
  return
}

// -----

func.func @down_weight_shape(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x64x64xf4E2M1FN>, %weight_scales: tensor<4x96x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.down' weight is tensor<4x64x64xf4E2M1FN>; its shape must be ?x96x64}}
  %0 = "moe.down"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales) {topk = 2 : i64, block = 32 : i64, weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x64x64xf4E2M1FN>,
         tensor<4x96x2xf8E8M0FNU>) -> tensor<?x96xf32>
  return
}

// -----

func.func @down_bias_shape(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x96x64xf4E2M1FN>, %weight_scales: tensor<4x96x2xf8E8M0FNU>,
    %bias: tensor<4x64xbf16>) {
  // expected-error@below {{'moe.down' bias is tensor<4x64xbf16>; its shape must be 4x96}}
  %0 = "moe.down"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales, %bias) {topk = 2 : i64, block = 32 : i64, weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 1>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x96x64xf4E2M1FN>,
         tensor<4x96x2xf8E8M0FNU>, tensor<4x64xbf16>) -> tensor<?x96xf32>
  return
}

// -----

func.func @down_bias_element(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %weight: tensor<4x96x64xf4E2M1FN>, %weight_scales: tensor<4x96x2xf8E8M0FNU>,
    %bias: tensor<4x96xi32>) {
  // expected-error@below {{'moe.down' bias has element type i32; it must be bf16 or f16 or f32}}
  %0 = "moe.down"(%x, %sorted_ids, %expert_ids, %num_valid, %weight, %weight_scales, %bias) {topk = 2 : i64, block = 32 : i64, weight_order = "nk",
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 1>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x96x64xf4E2M1FN>,
         tensor<4x96x2xf8E8M0FNU>, tensor<4x96xi32>) -> tensor<?x96xf32>
  return
}

// -----

func.func @one_stage_activation(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %sorted_weights: tensor<?xf32>, %gate_up: tensor<4x128x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts_one_stage' activation is 'relu'; it must be silu or swiglu or gelu or gelu_tanh}}
  %0 = "moe.experts_one_stage"(%x, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %gate_up, %gate_up_scales, %down, %down_scales) {topk = 2 : i64, block = 32 : i64, activation = "relu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk", scale_mode = "none",
        routing_weight_stage = 2 : i64, operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x64xf32>
  return
}

// -----

func.func @one_stage_gate_up_order(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %sorted_weights: tensor<?xf32>, %gate_up: tensor<4x128x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts_one_stage' gate_up_order is 'swapped'; it must be interleaved or concatenated}}
  %0 = "moe.experts_one_stage"(%x, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %gate_up, %gate_up_scales, %down, %down_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "swapped", weight_order = "nk", scale_mode = "none", routing_weight_stage = 2 : i64,
        operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x64xf32>
  return
}

// -----

func.func @one_stage_routing_weight_stage(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %sorted_weights: tensor<?xf32>, %gate_up: tensor<4x128x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts_one_stage' routing_weight_stage is 0; it must be 1 or 2}}
  %0 = "moe.experts_one_stage"(%x, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %gate_up, %gate_up_scales, %down, %down_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk", scale_mode = "none",
        routing_weight_stage = 0 : i64, operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x64xf32>
  return
}

// -----

func.func @one_stage_block(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %sorted_weights: tensor<?xf32>, %gate_up: tensor<4x128x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts_one_stage' block is 4; it must be 8 or 16 or 32 or 64 or 128 or 144}}
  %0 = "moe.experts_one_stage"(%x, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %gate_up, %gate_up_scales, %down, %down_scales) {topk = 2 : i64, block = 4 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk", scale_mode = "none",
        routing_weight_stage = 2 : i64, operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x64xf32>
  return
}

// -----

func.func @one_stage_scale_mode_unquantised(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %sorted_weights: tensor<?xf32>, %gate_up: tensor<4x128x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts_one_stage' scale_mode is 'even'; it must be none}}
  %0 = "moe.experts_one_stage"(%x, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %gate_up, %gate_up_scales, %down, %down_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk", scale_mode = "even",
        routing_weight_stage = 2 : i64, operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x64xf32>
  return
}

// -----

func.func @one_stage_scale_mode_quantised(
    %x: tensor<?x64xf4E2M1FN>, %x_scales: tensor<?x8xf8E8M0FNU>, %sorted_ids: tensor<?xi32>,
    %expert_ids: tensor<?xi32>, %num_valid: tensor<2xi32>, %sorted_weights: tensor<?xf32>,
    %gate_up: tensor<4x128x64xf4E2M1FN>, %gate_up_scales: tensor<4x128x2xf8E8M0FNU>,
    %down: tensor<4x64x64xf4E2M1FN>, %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts_one_stage' scale_mode is 'none'; it must be even or floor or ceil or rceil}}
  %0 = "moe.experts_one_stage"(%x, %x_scales, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %gate_up, %gate_up_scales, %down, %down_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk", scale_mode = "none",
        routing_weight_stage = 2 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xf4E2M1FN>, tensor<?x8xf8E8M0FNU>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>,
         tensor<?xf32>, tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>,
         tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xf32>
  return
}

// -----

func.func @one_stage_gate_up_rows(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %sorted_weights: tensor<?xf32>, %gate_up: tensor<4x96x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts_one_stage' gate_up has 96 rows; gate and up need a multiple of 32 each}}
  %0 = "moe.experts_one_stage"(%x, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %gate_up, %gate_up_scales, %down, %down_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk", scale_mode = "none",
        routing_weight_stage = 2 : i64, operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>,
         tensor<4x96x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x64xf32>
  return
}

// -----

func.func @one_stage_out_shape(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %sorted_weights: tensor<?xf32>, %gate_up: tensor<4x128x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts_one_stage' out is tensor<?x96xf32>; its shape must be ?x64}}
  %0 = "moe.experts_one_stage"(%x, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %gate_up, %gate_up_scales, %down, %down_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk", scale_mode = "none",
        routing_weight_stage = 2 : i64, operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x96xf32>
  return
}

// -----

func.func @one_stage_out_element(
    %x: tensor<?x64xbf16>, %sorted_ids: tensor<?xi32>, %expert_ids: tensor<?xi32>,
    %num_valid: tensor<2xi32>, %sorted_weights: tensor<?xf32>, %gate_up: tensor<4x128x64xf4E2M1FN>,
    %gate_up_scales: tensor<4x128x2xf8E8M0FNU>, %down: tensor<4x64x64xf4E2M1FN>,
    %down_scales: tensor<4x64x2xf8E8M0FNU>) {
  // expected-error@below {{'moe.experts_one_stage' out has element type bf16; it must be f32}}
  %0 = "moe.experts_one_stage"(%x, %sorted_ids, %expert_ids, %num_valid, %sorted_weights, %gate_up, %gate_up_scales, %down, %down_scales) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 0.0 : f32,
        gate_up_order = "concatenated", weight_order = "nk", scale_mode = "none",
        routing_weight_stage = 2 : i64, operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>,
         tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>)
      -> tensor<?x64xbf16>
  return
}

// -----

func.func @combine_rows_rank(%rows: tensor<?xf32>, %ids: tensor<?x2xi32>) {
  // expected-error@below {{'moe.combine' rows has rank 1; it must be 2}}
  %0 = "moe.combine"(%rows, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?xf32>, tensor<?x2xi32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @combine_rows_element(%rows: tensor<?x64xbf16>, %ids: tensor<?x2xi32>) {
  // expected-error@below {{'moe.combine' rows has element type bf16; it must be f32}}
  %0 = "moe.combine"(%rows, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @combine_ids(%rows: tensor<?x64xf32>, %ids: tensor<?xi32>) {
  // expected-error@below {{'moe.combine' ids has rank 1; it must be 2}}
  %0 = "moe.combine"(%rows, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x64xf32>, tensor<?xi32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @combine_rows_dynamic(%rows: tensor<?x?xf32>, %ids: tensor<?x2xi32>) {
  // expected-error@below {{'moe.combine' rows is tensor<?x?xf32>; axis 1 must have a static size}}
  %0 = "moe.combine"(%rows, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x?xf32>, tensor<?x2xi32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @combine_rows_count(%rows: tensor<7x64xf32>, %ids: tensor<3x2xi32>) {
  // expected-error@below {{'moe.combine' rows is tensor<7x64xf32>; its shape must be 6x64}}
  %0 = "moe.combine"(%rows, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<7x64xf32>, tensor<3x2xi32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @combine_out_shape(%rows: tensor<?x64xf32>, %ids: tensor<?x2xi32>) {
  // expected-error@below {{'moe.combine' out is tensor<?x96xbf16>; its shape must be ?x64}}
  %0 = "moe.combine"(%rows, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x64xf32>, tensor<?x2xi32>) -> tensor<?x96xbf16>
  return
}

// -----

func.func @combine_out_element(%rows: tensor<?x64xf32>, %ids: tensor<?x2xi32>) {
  // expected-error@below {{'moe.combine' out has element type f32; it must be bf16 or f16}}
  %0 = "moe.combine"(%rows, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x64xf32>, tensor<?x2xi32>) -> tensor<?x64xf32>
  return
}

// -----

func.func @combine_num_tokens(%rows: tensor<?x64xf32>, %ids: tensor<?x2xi32>, %num_tokens: tensor<2xi32>) {
  // expected-error@below {{'moe.combine' num_tokens is tensor<2xi32>; its shape must be 1}}
  %0 = "moe.combine"(%rows, %ids, %num_tokens) {operandSegmentSizes = array<i32: 1, 1, 1, 0>}
      : (tensor<?x64xf32>, tensor<?x2xi32>, tensor<2xi32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @combine_map_rank(%rows: tensor<?x64xf32>, %ids: tensor<?x2xi32>, %expert_map: tensor<1x4xi1>) {
  // expected-error@below {{'moe.combine' expert_map has rank 2; it must be 1}}
  %0 = "moe.combine"(%rows, %ids, %expert_map) {operandSegmentSizes = array<i32: 1, 1, 0, 1>}
      : (tensor<?x64xf32>, tensor<?x2xi32>, tensor<1x4xi1>) -> tensor<?x64xbf16>
  return
}
