// RUN: moeloom-opt -p moe-lower-to-kernels{target=sm_90} --split-input-file %s | filecheck %s
// RUN: moeloom-opt -p moe-lower-to-kernels{target=gfx950} --split-input-file %s | filecheck --check-prefix=UNMEASURED %s

// For few tokens a router and the token sort that reads it are one launch; what reads either goes on reading.
// CHECK-LABEL: func.func @joins
// CHECK:         [[M:%.*]] = tensor.dim %arg0
// CHECK:         [[BOTH:%.*]]:6 = "kernel.alternatives"([[M]]) ({
// CHECK-NEXT:      "kernel.launch"([[M]], %arg0, %arg1) {{.*}}kernel = @route_sort_0
// CHECK:         }, {
// CHECK-NEXT:      [[ROUTE:%.*]]:2 = "kernel.launch"([[M]], %arg0, %arg1) {{.*}}kernel = @route_0
// CHECK:           "kernel.launch"([[M]], [[ROUTE]]#1, [[ROUTE]]#0, %arg1) {{.*}}kernel = @sort_tokens_0, moe.op = "moe.sort_tokens"
// CHECK:         }) {choice = "prologue", max_m = 8 : i64, {{.*}}reason = "routing and token sort in one launch up to 8 tokens on sm_90"
// CHECK:         return [[BOTH]]#0, [[BOTH]]#1, [[BOTH]]#2
// UNMEASURED-LABEL: func.func @joins
// UNMEASURED-NOT:   route_sort
// UNMEASURED:       return
func.func @joins(%l: tensor<?x8xbf16>, %c: tensor<1xi32>) -> (tensor<?x2xf32>, tensor<?x2xi32>, tensor<?xi32>) {
  %w, %ids = "moe.route"(%l, %c) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 1>} : (tensor<?x8xbf16>, tensor<1xi32>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w, %c) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>, tensor<1xi32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return %w, %ids, %s : tensor<?x2xf32>, tensor<?x2xi32>, tensor<?xi32>
}

// -----

// Not of other tokens than the sort's, of an expert map, or of weights from elsewhere.
// CHECK-LABEL: func.func @stays_apart_from_another_count
// CHECK-NOT:     route_sort
// CHECK:         return
func.func @stays_apart_from_another_count(%l: tensor<?x8xbf16>, %c: tensor<1xi32>) -> tensor<?xi32> {
  %w, %ids = "moe.route"(%l) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w, %c) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 1, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>, tensor<1xi32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return %s : tensor<?xi32>
}

// The routed tokens without an expert are in nobody's list.
// CHECK-LABEL: func.func @joins_a_sort_of_all_tokens_in_each_plan
// CHECK:         kernel = @route_sort_0
// CHECK:         kernel = @[[ROUTE:route_[0-9]]]
// CHECK:         choice = "prologue"
// CHECK:         kernel = @[[ROUTE]]
// CHECK:         return
func.func @joins_a_sort_of_all_tokens_in_each_plan(%l: tensor<?x8xbf16>, %c: tensor<1xi32>) -> tensor<?xi32> {
  %zero = arith.constant 0 : index
  %w, %ids = "moe.route"(%l, %c) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 1>} : (tensor<?x8xbf16>, tensor<1xi32>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  %m = tensor.dim %ids, %zero : tensor<?x2xi32>
  %r = "kernel.alternatives"(%m) ({
    %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
    "kernel.yield"(%s) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?xi32>) -> ()
  }, {
    %t, %tw, %f, %o = "moe.sort_tokens"(%ids, %w) {experts = 8 : i64, block = 64 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
    "kernel.yield"(%t) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?xi32>) -> ()
  }) {choice = "tokens", max_m = 40 : i64, reason = "few", resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (index) -> tensor<?xi32>
  return %r : tensor<?xi32>
}

// CHECK-LABEL: func.func @stays_apart_from_a_map
// CHECK-NOT:     route_sort
// CHECK:         return
func.func @stays_apart_from_a_map(%l: tensor<?x8xbf16>, %m: tensor<8xi1>) -> tensor<?xi32> {
  %w, %ids = "moe.route"(%l) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w, %m) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 1>}
    : (tensor<?x2xi32>, tensor<?x2xf32>, tensor<8xi1>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return %s : tensor<?xi32>
}

// CHECK-LABEL: func.func @stays_apart_from_other_weights
// CHECK-NOT:     route_sort
// CHECK:         return
func.func @stays_apart_from_other_weights(%l: tensor<?x8xbf16>, %v: tensor<?x2xf32>) -> tensor<?xi32> {
  %w, %ids = "moe.route"(%l) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %v) {experts = 8 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x2xi32>, tensor<?x2xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  return %s : tensor<?xi32>
}

// -----

// Only the joined launch has M that fuses; both make the row of each slot, which the fused quantiser reads.
// CHECK-LABEL: func.func @joins_where_only_few_tokens_fuse
// CHECK:         [[BOTH:%.*]]:9 = "kernel.alternatives"
// CHECK-NEXT:      [[SORT:%.*]]:7 = {{.*}}kernel = @route_sort_0, moe.op = "moe.route"
// CHECK-NEXT:      "kernel.launch"({{%[^,]*}}, %arg0, [[SORT]]#6, [[SORT]]#5) {{.*}}kernel = @quant_sort_sm_90_0, {{.*}}moe.op = "moe.quant_sort"
// CHECK:         }, {
// CHECK:           kernel = @route_0, moe.op = "moe.route"
// CHECK:           kernel = @sort_tokens_0, moe.op = "moe.sort_tokens"
// CHECK:           kernel = @quant_0, moe.op = "moe.quant_sort"
// CHECK:           kernel = @sort_scales_0
// CHECK:         choice = "prologue", max_m = 8
// CHECK:         return [[BOTH]]#7, [[BOTH]]#8
func.func @joins_where_only_few_tokens_fuse(%x: tensor<?x96xbf16>, %l: tensor<?x64xbf16>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>) {
  %w, %ids = "moe.route"(%l) {topk = 64 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x64xbf16>) -> (tensor<?x64xf32>, tensor<?x64xi32>)
  %s, %sw, %e, %n = "moe.sort_tokens"(%ids, %w) {experts = 64 : i64, block = 8 : i64, operandSegmentSizes = array<i32: 1, 1, 0, 0>}
    : (tensor<?x64xi32>, tensor<?x64xf32>) -> (tensor<?xi32>, tensor<?xf32>, tensor<?xi32>, tensor<2xi32>)
  %q, %ss = "moe.quant_sort"(%x, %s, %n) {kind = "per_1x32", scale_mode = "even", stage = 1 : i64, topk = 64 : i64, layout = "tiled_32x8"}
    : (tensor<?x96xbf16>, tensor<?xi32>, tensor<2xi32>) -> (tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>)
  return %q, %ss : tensor<?x96xf4E2M1FN>, tensor<?x8xf8E8M0FNU>
}
