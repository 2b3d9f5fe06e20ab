// RUN: moeloom-opt -p moe-lower-to-kernels{target=sm_90} --split-input-file %s | filecheck %s
// RUN: moeloom-opt -p moe-lower-to-kernels{target=gfx950} --split-input-file %s | filecheck --check-prefix=UNMEASURED %s

// For few tokens the product that only a router reads is a launch, beyond them ATen's.
// CHECK:         params = {columns = 96 : i64, experts = 8 : i64, has_bias = true, {{.*}}x = "bf16"}, sym_name = "router_0"
// CHECK-LABEL: func.func @launches
// CHECK:         [[M:%.*]] = tensor.dim %arg0
// CHECK:         [[LOGITS:%.*]] = "kernel.alternatives"([[M]]) ({
// CHECK-NEXT:      "kernel.launch"([[M]], %arg0, %arg1, %arg2) {{.*}}kernel = @router_0, moe.op = "torch.aten.linear"{{.*}}strided = array<i64: 0>
// CHECK:         }, {
// CHECK-NEXT:      torch.aten.linear
// CHECK-NEXT:      torch_c.to_builtin_tensor
// CHECK:         }) {choice = "linear", max_m = 16 : i64, {{.*}}reason = "the router's product in a launch of its own up to 16 tokens on sm_90"
// CHECK-NOT:     torch.aten.linear
// CHECK:         "kernel.launch"([[M]], [[LOGITS]]) {{.*}}kernel = @route_0
// UNMEASURED-LABEL: func.func @launches
// UNMEASURED-NOT:   router
// UNMEASURED:       return
func.func @launches(%x: tensor<?x96xbf16>, %w: tensor<8x96xbf16>, %b: tensor<8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>) {
  %0 = torch_c.from_builtin_tensor %x : tensor<?x96xbf16> -> !torch.vtensor<[?,96],bf16>
  %1 = torch_c.from_builtin_tensor %w : tensor<8x96xbf16> -> !torch.vtensor<[8,96],bf16>
  %2 = torch_c.from_builtin_tensor %b : tensor<8xbf16> -> !torch.vtensor<[8],bf16>
  %3 = torch.aten.linear %0, %1, %2 : !torch.vtensor<[?,96],bf16>, !torch.vtensor<[8,96],bf16>, !torch.vtensor<[8],bf16> -> !torch.vtensor<[?,8],bf16>
  %l = torch_c.to_builtin_tensor %3 : !torch.vtensor<[?,8],bf16> -> tensor<?x8xbf16>
  %r, %ids = "moe.route"(%l) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return %r, %ids : tensor<?x2xf32>, tensor<?x2xi32>
}

// -----

// Without a bias.
// CHECK:         has_bias = false
// CHECK-LABEL: func.func @has_no_bias
// CHECK:         "kernel.launch"({{%[^,]*}}, %arg0, %arg1) {{.*}}kernel = @router_0
// CHECK:         torch.aten.linear
func.func @has_no_bias(%x: tensor<?x96xf16>, %w: tensor<8x96xf16>) -> tensor<?x2xi32> {
  %0 = torch_c.from_builtin_tensor %x : tensor<?x96xf16> -> !torch.vtensor<[?,96],f16>
  %1 = torch_c.from_builtin_tensor %w : tensor<8x96xf16> -> !torch.vtensor<[8,96],f16>
  %none = torch.constant.none
  %3 = torch.aten.linear %0, %1, %none : !torch.vtensor<[?,96],f16>, !torch.vtensor<[8,96],f16>, !torch.none -> !torch.vtensor<[?,8],f16>
  %l = torch_c.to_builtin_tensor %3 : !torch.vtensor<[?,8],f16> -> tensor<?x8xf16>
  %r, %ids = "moe.route"(%l) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return %ids : tensor<?x2xi32>
}

// -----

// Logits that something else reads stay ATen's.
// CHECK-LABEL: func.func @has_another_reader
// CHECK-NOT:     router
// CHECK:         return
func.func @has_another_reader(%x: tensor<?x96xbf16>, %w: tensor<8x96xbf16>) -> (tensor<?x2xi32>, tensor<?x8xbf16>) {
  %0 = torch_c.from_builtin_tensor %x : tensor<?x96xbf16> -> !torch.vtensor<[?,96],bf16>
  %1 = torch_c.from_builtin_tensor %w : tensor<8x96xbf16> -> !torch.vtensor<[8,96],bf16>
  %none = torch.constant.none
  %3 = torch.aten.linear %0, %1, %none : !torch.vtensor<[?,96],bf16>, !torch.vtensor<[8,96],bf16>, !torch.none -> !torch.vtensor<[?,8],bf16>
  %l = torch_c.to_builtin_tensor %3 : !torch.vtensor<[?,8],bf16> -> tensor<?x8xbf16>
  %r, %ids = "moe.route"(%l) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return %ids, %l : tensor<?x2xi32>, tensor<?x8xbf16>
}

// -----

// So do those of f32, whose products are not exact.
// CHECK-LABEL: func.func @is_of_f32
// CHECK-NOT:     router
// CHECK:         return
func.func @is_of_f32(%x: tensor<?x96xf32>, %w: tensor<8x96xf32>) -> tensor<?x2xi32> {
  %0 = torch_c.from_builtin_tensor %x : tensor<?x96xf32> -> !torch.vtensor<[?,96],f32>
  %1 = torch_c.from_builtin_tensor %w : tensor<8x96xf32> -> !torch.vtensor<[8,96],f32>
  %none = torch.constant.none
  %3 = torch.aten.linear %0, %1, %none : !torch.vtensor<[?,96],f32>, !torch.vtensor<[8,96],f32>, !torch.none -> !torch.vtensor<[?,8],f32>
  %l = torch_c.to_builtin_tensor %3 : !torch.vtensor<[?,8],f32> -> tensor<?x8xf32>
  %r, %ids = "moe.route"(%l) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xf32>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return %ids : tensor<?x2xi32>
}

// -----

// And those of so wide an x that a program has no room for an expert's weights.
// CHECK-LABEL: func.func @is_wide
// CHECK-NOT:     router
// CHECK:         return
func.func @is_wide(%x: tensor<?x4128xbf16>, %w: tensor<8x4128xbf16>) -> tensor<?x2xi32> {
  %0 = torch_c.from_builtin_tensor %x : tensor<?x4128xbf16> -> !torch.vtensor<[?,4128],bf16>
  %1 = torch_c.from_builtin_tensor %w : tensor<8x4128xbf16> -> !torch.vtensor<[8,4128],bf16>
  %none = torch.constant.none
  %3 = torch.aten.linear %0, %1, %none : !torch.vtensor<[?,4128],bf16>, !torch.vtensor<[8,4128],bf16>, !torch.none -> !torch.vtensor<[?,8],bf16>
  %l = torch_c.to_builtin_tensor %3 : !torch.vtensor<[?,8],bf16> -> tensor<?x8xbf16>
  %r, %ids = "moe.route"(%l) {topk = 2 : i64, score = "softmax_after_topk", renormalise = false, scale = 1.0 : f32, groups = 1 : i64,
      top_groups = 1 : i64, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<?x8xbf16>) -> (tensor<?x2xf32>, tensor<?x2xi32>)
  return %ids : tensor<?x2xi32>
}
