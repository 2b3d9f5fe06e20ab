// RUN: moeloom-opt -p moe-lower-to-kernels --split-input-file --verify-diagnostics %s

func.func @per_token(%x: tensor<?x64xbf16>) -> (tensor<?x64xf8E4M3FN>, tensor<?x1xf32>) {
  // expected-error@+1 {{'moe.quant' of kind per_token has no kernel for target cpu; it takes per_1x32 only}}
  %q, %s = "moe.quant"(%x) {kind = "per_token", scale_mode = "none"} : (tensor<?x64xbf16>) -> (tensor<?x64xf8E4M3FN>, tensor<?x1xf32>)
  return %q, %s : tensor<?x64xf8E4M3FN>, tensor<?x1xf32>
}

// -----

func.func @per_tensor(%x: tensor<?x64xbf16>) -> (tensor<?x64xf8E4M3FN>, tensor<1xf32>) {
  // expected-error@+1 {{'moe.quant' of kind per_tensor has no kernel for target cpu; it takes per_1x32 only}}
  %q, %s = "moe.quant"(%x) {kind = "per_tensor", scale_mode = "none"} : (tensor<?x64xbf16>) -> (tensor<?x64xf8E4M3FN>, tensor<1xf32>)
  return %q, %s : tensor<?x64xf8E4M3FN>, tensor<1xf32>
}

// -----

func.func @per_1x128(%x: tensor<?x128xbf16>) -> (tensor<?x128xf8E4M3FN>, tensor<?x1xf32>) {
  // expected-error@+1 {{'moe.quant' of kind per_1x128 has no kernel for target cpu; it takes per_1x32 only}}
  %q, %s = "moe.quant"(%x) {kind = "per_1x128", scale_mode = "none"} : (tensor<?x128xbf16>) -> (tensor<?x128xf8E4M3FN>, tensor<?x1xf32>)
  return %q, %s : tensor<?x128xf8E4M3FN>, tensor<?x1xf32>
}

// -----

func.func @ids_from_elsewhere(%s: tensor<?x2xf8E8M0FNU>, %ids: tensor<?xi32>, %n: tensor<2xi32>) -> tensor<?x8xf8E8M0FNU> {
  // expected-error@+1 {{sorted_ids of 'moe.sort_scales' must come from moe.sort_tokens in the same function}}
  %ss = "moe.sort_scales"(%s, %ids, %n) {stage = 1 : i64, topk = 4 : i64, layout = "tiled_32x8"}
    : (tensor<?x2xf8E8M0FNU>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x8xf8E8M0FNU>
  return %ss : tensor<?x8xf8E8M0FNU>
}

// -----

// expected-error@+1 {{@static_tokens has no input of type tensor<?x...>; its token dimension must be dynamic}}
func.func @static_tokens(%x: tensor<4x64xbf16>) -> (tensor<4x64xf4E2M1FN>, tensor<4x2xf8E8M0FNU>) {
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "even"} : (tensor<4x64xbf16>) -> (tensor<4x64xf4E2M1FN>, tensor<4x2xf8E8M0FNU>)
  return %q, %s : tensor<4x64xf4E2M1FN>, tensor<4x2xf8E8M0FNU>
}

// -----

func.func @unplanned(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<4x128x64xbf16>, %w2: tensor<4x64x64xbf16>) -> tensor<?x64xbf16> {
  // expected-error@+1 {{'moe.experts' has no kernel for target cpu; plan it first}}
  %o = "moe.experts"(%x, %ids, %w, %w1, %w2) {activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32, gate_up_order = "concatenated",
      weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
    : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xbf16>, tensor<4x64x64xbf16>) -> tensor<?x64xbf16>
  return %o : tensor<?x64xbf16>
}

// -----

func.func @unquantised_weights(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<4x128x64xbf16> {moe.weight = "w"}) -> tensor<?x64xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  // expected-error@+1 {{expert weights are bf16; this target multiplies MXFP4: compile with --quantize-weights mxfp4}}
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 0, 0>}
    : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xbf16>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}

// -----

func.func @nameless_weight(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<4x128x64xf4E2M1FN>,
    %s1: tensor<4x128x2xf8E8M0FNU> {moe.weight = "s"}) -> tensor<?x64xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 4 : i64, block = 32 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  // expected-error@+1 {{argument 3 is used as payload; give it moe.weight = "name in the checkpoint"}}
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 32 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}

// -----

func.func @blocks_of_one_layout(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<8x128x96xf4E2M1FN>,
    %s1: tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 144 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  // expected-error@+1 {{sort blocks of 144 rows have no kernel for target cpu and weights n16k32; plan with block=16, 32, 64 or 128}}
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 144 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}
