// RUN: moeloom-opt -p moe-lower-to-kernels{target=sm_90} %s | filecheck %s

// An order of the sort blocks counts those that are not whole in ten bits: one an expert, 1023 at most.
// CHECK-DAG:   ordered = 0 : i64, programs = {{[0-9]+}} : i64, {{.*}}sym_name = "prefill_gate_up_1"
// CHECK-DAG:   ordered = 2048 : i64, programs = {{[0-9]+}} : i64, {{.*}}sym_name = "prefill_gate_up_0"
// CHECK-LABEL: func.func @in_order
// CHECK:         kernel = @prefill_gate_up_0
func.func @in_order(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<1023x128x96xf4E2M1FN> {moe.weight = "w"},
    %s1: tensor<1023x128x3xf8E8M0FNU> {moe.weight = "s"}) -> tensor<?x64xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 1023 : i64, block = 144 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 144 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<1023x128x96xf4E2M1FN>, tensor<1023x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}

// CHECK-LABEL: func.func @as_they_come
// CHECK:         kernel = @prefill_gate_up_1
func.func @as_they_come(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>, %w1: tensor<1024x128x96xf4E2M1FN> {moe.weight = "v"},
    %s1: tensor<1024x128x3xf8E8M0FNU> {moe.weight = "t"}) -> tensor<?x64xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 1024 : i64, block = 144 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 144 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<1024x128x96xf4E2M1FN>, tensor<1024x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}
