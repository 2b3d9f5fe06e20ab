// RUN: moeloom-opt -p moe-lower-to-kernels{target=sm_90} --split-input-file %s | filecheck %s

// Up to 4 tokens the launch of gate_up routes and sorts too, and down finds its first weights by the logits.
// CHECK:         logits = "bf16", {{.*}}sym_name = "decode_routed_gate_up_0"
// CHECK-LABEL: func.func @routes_in_gate_up
// CHECK:         [[APART:%.*]] = "kernel.exchange"
// CHECK-NEXT:    [[JOINED:%.*]] = "kernel.exchange"
// CHECK:         [[M:%.*]] = tensor.dim %arg0
// CHECK:         [[LOGITS:%.*]] = "kernel.alternatives"([[M]])
// CHECK:         choice = "linear"
// CHECK:         [[ALL:%.*]]:7 = "kernel.alternatives"([[M]]) ({
// CHECK-NEXT:      "kernel.launch"([[M]], %arg0, [[LOGITS]], %arg2, %arg3, [[JOINED]]) {{.*}}kernel = @decode_routed_gate_up_0, moe.op = "moe.gate_up"{{.*}}strided = array<i64: 0>
// CHECK:         }, {
// CHECK:           [[BOTH:%.*]]:6 = "kernel.alternatives"([[M]]) ({
// CHECK:           kernel = @route_sort_0
// CHECK:           kernel = @route_0
// CHECK:           choice = "prologue", max_m = 8 : i64
// CHECK:           "kernel.launch"([[M]], %arg0, [[BOTH]]#2, [[BOTH]]#4, [[BOTH]]#5, %arg3, [[APART]]) {{.*}}kernel = @decode_gate_up_0
// CHECK:         }) {choice = "routing", max_m = 4 : i64, {{.*}}reason = "routing, token sort and gate_up in one launch up to 4 tokens on sm_90"
// CHECK:         [[ROWS:%.*]] = "kernel.alternatives"([[M]]) ({
// CHECK-NEXT:      "kernel.launch"([[M]], [[ALL]]#6, [[LOGITS]], %arg2, [[ALL]]#2, [[ALL]]#4, [[ALL]]#5, [[ALL]]#3, %arg5) {{.*}}kernel = @decode_down_
// CHECK:         }, {
// CHECK-NEXT:      "kernel.launch"([[M]], [[ALL]]#6, [[ALL]]#2, [[ALL]]#4, [[ALL]]#5, [[ALL]]#3, %arg5) {{.*}}kernel = @decode_down_
// CHECK:         }) {choice = "routing", max_m = 4 : i64
// CHECK:         "kernel.launch"([[M]], [[ROWS]], [[ALL]]#1) {{.*}}kernel = @combine_0
func.func @routes_in_gate_up(%x: tensor<?x96xbf16>, %w: tensor<8x96xbf16>, %c: tensor<1xi32>,
    %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"}, %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"},
    %w2: tensor<8x96x64xf4E2M1FN> {moe.weight = "v"}, %s2: tensor<8x96x2xf8E8M0FNU> {moe.weight = "t"}) -> tensor<?x96xbf16> {
  %0 = torch_c.from_builtin_tensor %x : tensor<?x96xbf16> -> !torch.vtensor<[?,96],bf16>
  %1 = torch_c.from_builtin_tensor %w : tensor<8x96xbf16> -> !torch.vtensor<[8,96],bf16>
  %none = torch.constant.none
  %3 = torch.aten.linear %0, %1, %none : !torch.vtensor<[?,96],bf16>, !torch.vtensor<[8,96],bf16>, !torch.none -> !torch.vtensor<[?,8],bf16>
  %l = torch_c.to_builtin_tensor %3 : !torch.vtensor<[?,8],bf16> -> tensor<?x8xbf16>
  %r, %ids = "moe.route"(%l, %c) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 1>} : (tensor<?x8xbf16>, tensor<1xi32>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %r) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 8 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  %y = "moe.down"(%h, %s, %e, %n, %sw, %w2, %s2) {topk = 2 : i64, block = 8 : i64, weight_order = "nk",
      operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 1, 1, 1, 0>}
    : (tensor<?x64xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<?xf32>, tensor<8x96x64xf4E2M1FN>, tensor<8x96x2xf8E8M0FNU>) -> tensor<?x96xf32>
  %out = "moe.combine"(%y, %ids) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x96xf32>, tensor<?x2xi32>) -> tensor<?x96xbf16>
  return %out : tensor<?x96xbf16>
}

// -----

// Not where the caller gives the logits: then nothing says that x is there before the wait. Nor with a correction bias.
// CHECK-LABEL: func.func @not_with_given_logits
// CHECK-NOT:     decode_routed_gate_up
// CHECK:         choice = "prologue"
// CHECK:         kernel = @decode_gate_up_{{[0-9]}}, moe.op
// CHECK:         return
func.func @not_with_given_logits(%x: tensor<?x96xbf16>, %l: tensor<?x8xbf16>,
    %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"}, %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"}) -> tensor<?x64xbf16> {
  %r, %ids = "moe.route"(%l) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %r) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 8 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}

// CHECK-LABEL: func.func @not_with_a_correction_bias
// CHECK-NOT:     decode_routed_gate_up
// CHECK:         choice = "prologue"
// CHECK:         return
func.func @not_with_a_correction_bias(%x: tensor<?x96xbf16>, %w: tensor<8x96xbf16>, %cb: tensor<8xf32>,
    %w1: tensor<8x128x96xf4E2M1FN> {moe.weight = "w"}, %s1: tensor<8x128x3xf8E8M0FNU> {moe.weight = "s"}) -> tensor<?x64xbf16> {
  %0 = torch_c.from_builtin_tensor %x : tensor<?x96xbf16> -> !torch.vtensor<[?,96],bf16>
  %1 = torch_c.from_builtin_tensor %w : tensor<8x96xbf16> -> !torch.vtensor<[8,96],bf16>
  %none = torch.constant.none
  %3 = torch.aten.linear %0, %1, %none : !torch.vtensor<[?,96],bf16>, !torch.vtensor<[8,96],bf16>, !torch.none -> !torch.vtensor<[?,8],bf16>
  %l = torch_c.to_builtin_tensor %3 : !torch.vtensor<[?,8],bf16> -> tensor<?x8xbf16>
  %r, %ids = "moe.route"(%l, %cb) {topk = 2 : i64, score = "sigmoid", renormalise = true, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x8xbf16>, tensor<8xf32>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %r) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %h = "moe.gate_up"(%x, %s, %e, %n, %w1, %s1) {topk = 2 : i64, block = 8 : i64, activation = "silu", alpha = 1.0 : f32, limit = 7.0 : f32,
      gate_up_order = "concatenated", weight_order = "nk", operandSegmentSizes = array<i32: 1, 0, 1, 1, 1, 0, 1, 1, 0>}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<?xi32>, tensor<2xi32>, tensor<8x128x96xf4E2M1FN>, tensor<8x128x3xf8E8M0FNU>) -> tensor<?x64xbf16>
  return %h : tensor<?x64xbf16>
}
