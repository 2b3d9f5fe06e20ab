// RUN: moeloom-opt %s -p "moe-plan-experts{activations=bf16}" --verify-diagnostics
func.func @prequantised(%x: tensor<?x64xf4E2M1FN>, %xs: tensor<?x2xf8E8M0FNU>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x128x64xf4E2M1FN>, %s1: tensor<4x128x2xf8E8M0FNU>, %w2: tensor<4x64x64xf4E2M1FN>, %s2: tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16> {
  // expected-error@below {{x is pre-quantised (f4E2M1FN); plan it with activations=mxfp4, or pass bf16 or f16}}
  %0 = "moe.experts"(%x, %xs, %ids, %w, %w1, %s1, %w2, %s2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0>}
      : (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x128x64xf4E2M1FN>,
         tensor<4x128x2xf8E8M0FNU>, tensor<4x64x64xf4E2M1FN>, tensor<4x64x2xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}
