// RUN: moeloom-opt %s -p "moe-plan-experts{activations=bf16}" | filecheck %s
// RUN: moeloom-opt %s -p "moe-plan-experts{activations=bf16},moe-fuse-quant-sort" --verify-diagnostics
// RUN: moeloom-opt %s -p "moe-plan-experts{activations=bf16 stages=1}" | filecheck %s --check-prefix=ONE

// Activations stay bf16 or f16: nothing is quantised, and the fusion says that it has nothing to do.
// CHECK-LABEL: func.func @a16
// CHECK-NEXT:    [[S:%.*]]:4 = "moe.sort_tokens"
// CHECK-NEXT:    [[H:%.*]] = "moe.gate_up"(%arg0, [[S]]#0, [[S]]#2, [[S]]#3, %arg3, %arg4) {{.*}} -> tensor<?x64xbf16>
// CHECK-NEXT:    "moe.down"([[H]], [[S]]#0, [[S]]#2, [[S]]#3, [[S]]#1, %arg5, %arg6)
// CHECK-NEXT:    "moe.combine"
// ONE-LABEL: func.func @a16
// ONE-NEXT:    [[S:%.*]]:4 = "moe.sort_tokens"
// ONE-NEXT:    "moe.experts_one_stage"(%arg0, [[S]]#0, [[S]]#2, [[S]]#3, [[S]]#1, %arg3, %arg4, %arg5, %arg6)
// ONE-SAME:      scale_mode = "none"
// ONE-NEXT:    "moe.combine"
func.func @a16(%x: tensor<?x64xf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<4x128x64xf4E2M1FN>,
    %s1: tensor<4x128x2xf8E8M0FNU>, %w2: tensor<4x64x64xf4E2M1FN>, %s2: tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xf16> {
  // expected-remark@below {{refused: stage 1 of @a16: f16 activations have no quantiser}}
  // expected-remark@below {{refused: stage 2 of @a16: bf16 activations have no quantiser}}
  %0 = "moe.experts"(%x, %ids, %w, %w1, %s1, %w2, %s2) {activation = "gelu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>, tensor<4x128x2xf8E8M0FNU>,
         tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xf16>
  return %0 : tensor<?x64xf16>
}
