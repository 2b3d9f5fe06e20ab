// RUN: moeloom-opt %s | moeloom-opt | filecheck %s
// Every op of the moe dialect, with and without its optional operands, survives printing and parsing.

// CHECK: "moe.entry"() {entry = "model.layers.0.mlp", prefix = "model.layers.0.mlp.", program = @route} : () -> ()
"moe.entry"() {entry = "model.layers.0.mlp", program = @route, prefix = "model.layers.0.mlp."} : () -> ()

// CHECK-LABEL: func.func @route
func.func @route(%logits: tensor<?x8xbf16>, %bias: tensor<8xf32>, %live: tensor<1xi32>) -> tensor<?x2xi32> {
  // CHECK: "moe.route"(%{{.*}}) {{.*}}score = "softmax_after_topk"{{.*}} : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  %w, %ids = "moe.route"(%logits) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32,
      groups = 1 : i64, top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  // CHECK: "moe.route"(%{{.*}}, %{{.*}}, %{{.*}}) {groups = 4 : i64, operandSegmentSizes = array<i32: 1, 1, 1>, renormalise = true
  %w2, %ids2 = "moe.route"(%logits, %bias, %live) {topk = 2 : i64, score = "sigmoid", renormalise = true,
      scale = 2.5 : f32, groups = 4 : i64, top_groups = 2 : i64, operandSegmentSizes = array<i32: 1, 1, 1>}
      : (tensor<?x8xbf16>, tensor<8xf32>, tensor<1xi32>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return %ids2 : tensor<?x2xi32>
}

// CHECK-LABEL: func.func @experts
func.func @experts(%x: tensor<?x64xf4E2M1FN>, %xs: tensor<?x2xf8E8M0FNU>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x128x64xf4E2M1FN>, %s1: tensor<4x128x2xf8E8M0FNU>, %b1: tensor<4x128xbf16>,
    %w2: tensor<4x64x64xf4E2M1FN>, %s2: tensor<4x64x2xf8E8M0FNU>, %b2: tensor<4x64xbf16>,
    %live: tensor<1xi32>, %mask: tensor<8xi1>) -> tensor<?x64xbf16> {
  // CHECK: "moe.experts"(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5, %arg6, %arg7, %arg8, %arg9, %arg10, %arg11)
  // CHECK-SAME: limit = 7.000000e+00 : f32
  %0 = "moe.experts"(%x, %xs, %ids, %w, %w1, %s1, %b1, %w2, %s2, %b2, %live, %mask) {activation = "swiglu",
      alpha = 1.702 : f32, limit = 7.0 : f32, gate_up_order = "interleaved", weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1>}
      : (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x128xbf16>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>,
         tensor<4x64xbf16>, tensor<1xi32>, tensor<8xi1>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}

// CHECK-LABEL: func.func @experts_stored_kn
func.func @experts_stored_kn(%x: tensor<?x64xf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x64x192xf32>, %w2: tensor<4x96x64xf32>) -> tensor<?x64xf16> {
  // CHECK: "moe.experts"{{.*}}weight_order = "kn"
  %0 = "moe.experts"(%x, %ids, %w, %w1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x192xf32>, tensor<4x96x64xf32>) -> tensor<?x64xf16>
  return %0 : tensor<?x64xf16>
}

// CHECK-LABEL: func.func @two_stages
func.func @two_stages(%x: tensor<3x64xbf16>, %ids: tensor<3x2xi32>, %w: tensor<3x2xf32>,
    %w1: tensor<4x192x64xf4E2M1FN>, %s1: tensor<4x192x2xf8E8M0FNU>, %b1: tensor<4x192xbf16>,
    %w2: tensor<4x64x96xf4E2M1FN>, %s2: tensor<4x64x3xf8E8M0FNU>, %b2: tensor<4x64xbf16>) -> tensor<3x64xbf16> {
  // CHECK: [[SORT:%.*]]:4 = "moe.sort_tokens"
  %sids, %sw, %eids, %nv = "moe.sort_tokens"(%ids, %w) {experts = 4 : i64, block = 32 : i64,
      operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<3x2xi32>, tensor<3x2xf32>) -> (tensor<132xi32>, tensor<132xf32>, tensor<5xi32>, tensor<2xi32>)
  // CHECK: [[Q:%.*]]:2 = "moe.quant"(%arg0) {kind = "per_1x32", scale_mode = "rceil"}
  %q, %s = "moe.quant"(%x) {kind = "per_1x32", scale_mode = "rceil"}
      : (tensor<3x64xbf16>) -> (tensor<3x64xf4E2M1FN>, tensor<3x2xf8E8M0FNU>)
  // CHECK: "moe.sort_scales"([[Q]]#1, [[SORT]]#0, [[SORT]]#3){{.*}} -> tensor<160x8xf8E8M0FNU>
  %ss = "moe.sort_scales"(%s, %sids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "tiled_32x8"}
      : (tensor<3x2xf8E8M0FNU>, tensor<132xi32>, tensor<2xi32>) -> tensor<160x8xf8E8M0FNU>
  // CHECK: "moe.gate_up"([[Q]]#0,
  %h = "moe.gate_up"(%q, %ss, %sids, %eids, %nv, %sw, %w1, %s1, %b1) {topk = 2 : i64, block = 32 : i64,
      activation = "swiglu", alpha = 1.702 : f32, limit = 7.0 : f32, gate_up_order = "interleaved", weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 1, 1>}
      : (tensor<3x64xf4E2M1FN>, tensor<160x8xf8E8M0FNU>, tensor<132xi32>, tensor<5xi32>, tensor<2xi32>, tensor<132xf32>,
         tensor<4x192x64xf4E2M1FN>, tensor<4x192x2xf8E8M0FNU>, tensor<4x192xbf16>) -> tensor<6x96xbf16>
  // CHECK: "moe.quant_sort"{{.*}}stage = 2
  %hq, %hs = "moe.quant_sort"(%h, %sids, %nv) {kind = "per_1x32", scale_mode = "rceil", stage = 2 : i64, topk = 2 : i64,
      layout = "tiled_32x8"} : (tensor<6x96xbf16>, tensor<132xi32>, tensor<2xi32>) -> (tensor<6x96xf4E2M1FN>, tensor<160x8xf8E8M0FNU>)
  // CHECK: [[ROWS:%.*]] = "moe.down"
  %rows = "moe.down"(%hq, %hs, %sids, %eids, %nv, %w2, %s2, %b2) {topk = 2 : i64, block = 32 : i64, weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 1, 1>}
      : (tensor<6x96xf4E2M1FN>, tensor<160x8xf8E8M0FNU>, tensor<132xi32>, tensor<5xi32>, tensor<2xi32>,
         tensor<4x64x96xf4E2M1FN>, tensor<4x64x3xf8E8M0FNU>, tensor<4x64xbf16>) -> tensor<6x64xf32>
  // CHECK: "moe.combine"([[ROWS]], %arg1)
  %out = "moe.combine"(%rows, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<6x64xf32>, tensor<3x2xi32>) -> tensor<3x64xbf16>
  return %out : tensor<3x64xbf16>
}

// CHECK-LABEL: func.func @one_stage
func.func @one_stage(%x: tensor<?x64xbf16>, %sids: tensor<?xi32>, %eids: tensor<?xi32>, %nv: tensor<2xi32>,
    %sw: tensor<?xf32>, %w1: tensor<4x128x64xf4E2M1FN>, %s1: tensor<4x128x2xf8E8M0FNU>, %w2: tensor<4x64x64xf4E2M1FN>,
    %s2: tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xf32> {
  // CHECK: "moe.experts_one_stage"{{.*}}scale_mode = "none"
  %0 = "moe.experts_one_stage"(%x, %sids, %eids, %nv, %sw, %w1, %s1, %w2, %s2) {topk = 2 : i64, block = 16 : i64,
      activation = "gelu_tanh", alpha = 0.0 : f32, limit = 0.0 : f32, gate_up_order = "concatenated", weight_order = "nk",
      scale_mode = "none", routing_weight_stage = 2 : i64, operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0>}
      : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xf32>
  return %0 : tensor<?x64xf32>
}

// CHECK-LABEL: func.func @other_quantisations
func.func @other_quantisations(%x: tensor<?x256xbf16>, %sids: tensor<?xi32>, %nv: tensor<2xi32>) {
  // CHECK: kind = "per_token"
  %a:2 = "moe.quant"(%x) {kind = "per_token", scale_mode = "none"} : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<?x1xf32>)
  // CHECK: kind = "per_tensor"
  %b:2 = "moe.quant"(%x) {kind = "per_tensor", scale_mode = "none"} : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<1xf32>)
  // CHECK: [[Q:%.*]]:2 = "moe.quant"{{.*}}kind = "per_1x128"
  %c:2 = "moe.quant"(%x) {kind = "per_1x128", scale_mode = "none"} : (tensor<?x256xbf16>) -> (tensor<?x256xf8E4M3FN>, tensor<?x2xf32>)
  // CHECK: "moe.sort_scales"([[Q]]#1{{.*}}layout = "row_major"
  %d = "moe.sort_scales"(%c#1, %sids, %nv) {stage = 1 : i64, topk = 2 : i64, layout = "row_major"}
      : (tensor<?x2xf32>, tensor<?xi32>, tensor<2xi32>) -> tensor<?x2xf32>
  return
}
