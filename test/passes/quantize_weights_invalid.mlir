// RUN: moeloom-opt %s -p moe-quantize-weights --split-input-file --verify-diagnostics

func.func @computed_weight(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %f: tensor<?x64x192xbf16> {moe.weight = "gate_up"}, %w2: tensor<4x96x64xbf16> {moe.weight = "down"}) -> tensor<?x64xbf16> {
  %w1 = tensor.cast %f : tensor<?x64x192xbf16> to tensor<4x64x192xbf16>
  // expected-error@below {{gate_up comes from tensor.cast; only weights that are function arguments can be quantised}}
  %0 = "moe.experts"(%x, %ids, %w, %w1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x192xbf16>, tensor<4x96x64xbf16>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}

// -----

func.func @an_input_is_no_weight(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x64x192xbf16> {moe.weight = "gate_up"}, %w2: tensor<4x96x64xbf16> {moe.input = "down"}) -> tensor<?x64xbf16> {
  // expected-error@below {{down is an argument without moe.weight; only weights can be quantised}}
  %0 = "moe.experts"(%x, %ids, %w, %w1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x192xbf16>, tensor<4x96x64xbf16>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}

// -----

func.func @no_argument_has_attributes(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x64x192xbf16>, %w2: tensor<4x96x64xbf16>) -> tensor<?x64xbf16> {
  // expected-error@below {{gate_up is an argument without moe.weight}}
  %0 = "moe.experts"(%x, %ids, %w, %w1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x192xbf16>, tensor<4x96x64xbf16>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}

// -----

func.func @weight_with_another_reader(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x64x192xbf16> {moe.weight = "gate_up"}, %w2: tensor<4x96x64xbf16> {moe.weight = "down"}) -> tensor<?x64x192xbf16> {
  // expected-error@below {{gate_up is also read by tensor.cast, which its quantised form would not serve}}
  %0 = "moe.experts"(%x, %ids, %w, %w1, %w2) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x192xbf16>, tensor<4x96x64xbf16>) -> tensor<?x64xbf16>
  %c = tensor.cast %w1 : tensor<4x64x192xbf16> to tensor<?x64x192xbf16>
  return %c : tensor<?x64x192xbf16>
}

// -----

func.func @weight_read_in_two_orders(%x: tensor<?x64xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<4x64x64xbf16> {moe.weight = "gate_up"}, %a: tensor<4x64x32xbf16> {moe.weight = "a"}, %b: tensor<4x32x64xbf16> {moe.weight = "b"}) {
  %0 = "moe.experts"(%x, %ids, %w, %w1, %a) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x64xbf16>, tensor<4x64x32xbf16>) -> tensor<?x64xbf16>
  // expected-error@below {{gate_up is read in order kn here and nk elsewhere}}
  %1 = "moe.experts"(%x, %ids, %w, %w1, %b) {activation = "silu", alpha = 0.0 : f32, limit = 0.0 : f32,
      gate_up_order = "concatenated", weight_order = "kn", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0>}
      : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<4x64x64xbf16>, tensor<4x32x64xbf16>) -> tensor<?x64xbf16>
  return
}
