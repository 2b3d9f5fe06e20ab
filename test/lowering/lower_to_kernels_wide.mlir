// RUN: moeloom-opt -p moe-lower-to-kernels{target=sm_90} --split-input-file %s | filecheck %s

// With blocks of 16 rows a program of down is twice as wide as a tile of the stream and holds a row of x whole: one sum a row.
// CHECK:       block = 16 : i64, {{.*}}num_warps = 4 : i64, {{.*}}programs = 396 : i64, {{.*}}splits = 2 : i64, stream_warps = 4 : i64, {{.*}}sym_name = "decode_down_1"
// CHECK:       block = 16 : i64, {{.*}}num_warps = 8 : i64, {{.*}}programs = 264 : i64, {{.*}}splits = 1 : i64, stream_warps = 4 : i64, {{.*}}sym_name = "decode_down_0"
// CHECK-LABEL: func.func @wide
// CHECK:         kernel = @decode_down_0{{.*}} -> tensor<?x96xf32>
// CHECK-LABEL: func.func @too_long_for_a_wide_one
// CHECK:         kernel = @decode_down_1{{.*}} -> tensor<2x?x96xf32>
func.func @wide(%x: tensor<?x1088xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w2: tensor<8x96x1088xf4E2M1FN> {moe.weight = "v"}, %s2: tensor<8x96x34xf8E8M0FNU> {moe.weight = "t"}) -> tensor<?x96xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %r = "moe.down"(%x, %s, %e, %n, %sw, %w2, %s2) {topk = 2 : i64, block = 16 : i64, weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0>}
    : (tensor<?x1088xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>, tensor<8x96x1088xf4E2M1FN>, tensor<8x96x34xf8E8M0FNU>) -> tensor<?x96xf32>
  %y = "moe.combine"(%r, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x96xf32>, tensor<?x2xi32>) -> tensor<?x96xbf16>
  return %y : tensor<?x96xbf16>
}

func.func @too_long_for_a_wide_one(%x: tensor<?x4096xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w2: tensor<8x96x4096xf4E2M1FN> {moe.weight = "v"}, %s2: tensor<8x96x128xf8E8M0FNU> {moe.weight = "t"}) -> tensor<?x96xbf16> {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %r = "moe.down"(%x, %s, %e, %n, %sw, %w2, %s2) {topk = 2 : i64, block = 16 : i64, weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0>}
    : (tensor<?x4096xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>, tensor<8x96x4096xf4E2M1FN>, tensor<8x96x128xf8E8M0FNU>) -> tensor<?x96xf32>
  %y = "moe.combine"(%r, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x96xf32>, tensor<?x2xi32>) -> tensor<?x96xbf16>
  return %y : tensor<?x96xbf16>
}

// -----

// The older one of two programs on an SM gets more to do: they take their runs in memory of their own.
// CHECK:       paired = true, {{.*}}sym_name = "decode_down_0"
// CHECK:       paired = true, {{.*}}sym_name = "decode_gate_up_0"
// CHECK-LABEL: func.func @paired
// CHECK:         [[DOWN:%.*]] = "kernel.exchange"() : () -> tensor<4096xi32>
// CHECK:         [[GATE_UP:%.*]] = "kernel.exchange"
// CHECK:         [[GATE_UP]]) {{.*}}kernel = @decode_gate_up_0
// CHECK:         [[DOWN]]) {{.*}}kernel = @decode_down_0
func.func @paired(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"}, %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"},
    %w2: tensor<8x96x64xf4E2M1FN> {moe.weight = "v"}, %s2: tensor<8x96x2xf8E8M0FNU> {moe.weight = "t"}) -> (tensor<?x96xf32>, tensor<?x64xbf16>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 16 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  %r = "moe.down"(%h, %s, %e, %n, %sw, %w2, %s2) {topk = 2 : i64, block = 16 : i64, weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0>}
    : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>, tensor<8x96x64xf4E2M1FN>, tensor<8x96x2xf8E8M0FNU>) -> tensor<?x96xf32>
  return %r, %h : tensor<?x96xf32>, tensor<?x64xbf16>
}

// -----

// Not where down's first programs might meet others that take runs too: it takes them while the launch before still runs.
// CHECK:       paired = false, {{.*}}sym_name = "decode_down_0"
// CHECK-LABEL: func.func @another_launch_between
func.func @another_launch_between(%x: tensor<?x96xbf16>, %ids: tensor<?x2xi32>, %w: tensor<?x2xf32>,
    %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"}, %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"},
    %w2: tensor<8x96x64xf4E2M1FN> {moe.weight = "v"}, %s2: tensor<8x96x2xf8E8M0FNU> {moe.weight = "t"}) -> (tensor<?x96xf32>, tensor<?x64xbf16>) {
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 16 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 16 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  %g = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 16 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  %r = "moe.down"(%h, %s, %e, %n, %sw, %w2, %s2) {topk = 2 : i64, block = 16 : i64, weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0>}
    : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>, tensor<8x96x64xf4E2M1FN>, tensor<8x96x2xf8E8M0FNU>) -> tensor<?x96xf32>
  return %r, %h : tensor<?x96xf32>, tensor<?x64xbf16>
}
