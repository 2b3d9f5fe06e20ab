// RUN: moeloom-opt %s -p "moe-quantize-weights{scale_mode=rceil}" | filecheck %s
// Twice is the same as once: the weights are f4E2M1FN then, and f4E2M1FN weights stay.
// RUN: moeloom-opt %s -p "moe-quantize-weights{scale_mode=rceil},moe-quantize-weights" | filecheck %s

// Weights stored [E, K, N] become [E, N, K]; the note says how the checkpoint holds them. Scales are appended.
// CHECK-LABEL: func.func @stored_kn(
// CHECK-SAME:    %arg3: tensor<4x192x64xf4E2M1FN> {moe.order = "kn", moe.part = "payload", moe.quantize = "rceil", moe.weight = "gate_up"}
// CHECK-SAME:    %arg4: tensor<4x64x96xf4E2M1FN> {moe.order = "kn", moe.part = "payload", moe.quantize = "rceil", moe.weight = "down"}
// CHECK-SAME:    %arg5: tensor<4x192x2xf8E8M0FNU> {moe.order = "kn", moe.part = "scales", moe.quantize = "rceil", moe.weight = "gate_up"}
// CHECK-SAME:    %arg6: tensor<4x64x3xf8E8M0FNU> {moe.order = "kn", moe.part = "scales", moe.quantize = "rceil", moe.weight = "down"}
// CHECK-NEXT:    "moe.experts"(%arg0, %arg1, %arg2, %arg3, %arg5, %arg4, %arg6) {{.*}}weight_order = "nk"
func.func @stored_kn(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x64x192xbf16> {moe.weight = "gate_up"}, %w2: tensor<4x96x64xbf16> {moe.weight = "down"}) -> tensor<?x64xbf16> {
  %0 = "moe.experts"(%x, %ids, %w, %w1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x192xbf16>, tensor<4x96x64xbf16>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}

// f32 weights stored [E, N, K], with biases, which stay. Attributes of the payload's argument stay too.
// CHECK-LABEL: func.func @stored_nk(
// CHECK-SAME:    %arg3: tensor<4x128x64xf4E2M1FN> {moe.order = "nk", moe.part = "payload", moe.quantize = "rceil", moe.weight = ["a", "b"], my.note = 1 : i64}
// CHECK-SAME:    %arg4: tensor<4x128xbf16> {moe.weight = "bias"}
// CHECK-SAME:    %arg6: tensor<4x128x2xf8E8M0FNU> {moe.order = "nk", moe.part = "scales", moe.quantize = "rceil", moe.weight = ["a", "b"]}
// CHECK-NEXT:    "moe.experts"(%arg0, %arg1, %arg2, %arg3, %arg6, %arg4, %arg5, %arg7)
func.func @stored_nk(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x128x64xf32> {moe.weight = ["a", "b"], my.note = 1 : i64}, %b1: tensor<4x128xbf16> {moe.weight = "bias"},
    %w2: tensor<4x64x64xf32> {moe.weight = "down"}) -> tensor<?x64xbf16> {
  %0 = "moe.experts"(%x, %ids, %w, %w1, %b1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf32>, tensor<4x128xbf16>, tensor<4x64x64xf32>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}

// Two layers that read the same weights share their scales.
// CHECK-LABEL: func.func @shared_weights(
// CHECK-SAME:    %arg5: tensor<4x192x2xf8E8M0FNU>{{.*}}, %arg6: tensor<4x64x3xf8E8M0FNU>
// CHECK-NEXT:    "moe.experts"(%arg0, %arg1, %arg2, %arg3, %arg5, %arg4, %arg6)
// CHECK-NEXT:    "moe.experts"(%0, %arg1, %arg2, %arg3, %arg5, %arg4, %arg6)
func.func @shared_weights(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x64x192xbf16> {moe.weight = "gate_up"}, %w2: tensor<4x96x64xbf16> {moe.weight = "down"}) -> tensor<?x64xbf16> {
  %0 = "moe.experts"(%x, %ids, %w, %w1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x192xbf16>, tensor<4x96x64xbf16>) -> tensor<?x64xbf16>
  %1 = "moe.experts"(%0, %ids, %w, %w1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x192xbf16>, tensor<4x96x64xbf16>) -> tensor<?x64xbf16>
  return %1 : tensor<?x64xbf16>
}

// Only one of the two is quantised already.
// CHECK-LABEL: func.func @half_quantised(
// CHECK-SAME:    %arg3: tensor<4x128x64xf4E2M1FN> {moe.weight = "gate_up"}, %arg4: tensor<4x128x2xf8E8M0FNU> {moe.weight = "gate_up_scales"}
// CHECK-SAME:    %arg5: tensor<4x64x64xf4E2M1FN> {moe.order = "nk", moe.part = "payload"
// CHECK-SAME:    %arg6: tensor<4x64x2xf8E8M0FNU> {moe.order = "nk", moe.part = "scales"
func.func @half_quantised(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x128x64xf4E2M1FN> {moe.weight = "gate_up"}, %s1: tensor<4x128x2xf8E8M0FNU> {moe.weight = "gate_up_scales"},
    %w2: tensor<4x64x64xbf16> {moe.weight = "down"}) -> tensor<?x64xbf16> {
  %0 = "moe.experts"(%x, %ids, %w, %w1, %s1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xbf16>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}

// Other ops pass unchanged.
// CHECK-LABEL: func.func @other_kinds_survive
// CHECK-NEXT:    "moe.quant"(%arg0) {kind = "per_token", scale_mode = "none"}
// CHECK-NEXT:    return
func.func @other_kinds_survive(%x: tensor<?x64xbf16>) -> tensor<?x64xf8E4M3FN> {
  %q:2 = "moe.quant"(%x) {kind = "per_token", scale_mode = "none"} : (tensor<?x64xbf16>) -> (tensor<?x64xf8E4M3FN>, tensor<?x1xf32>)
  return %q#0 : tensor<?x64xf8E4M3FN>
}
