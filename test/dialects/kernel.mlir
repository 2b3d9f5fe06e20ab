// RUN: moeloom-opt %s | moeloom-opt | filecheck %s
// Every op of the kernel dialect survives printing and parsing.

// CHECK: "kernel.define"() {params = {columns = 64 : i64, scale_mode = "even"}, sym_name = "quant_0", template = "quant"}
"kernel.define"() {sym_name = "quant_0", template = "quant", params = {columns = 64 : i64, scale_mode = "even"}} : () -> ()

// CHECK-LABEL: func.func @launches
func.func @launches(%m: index, %x: tensor<?x64xbf16>) -> tensor<?x64xf4E2M1FN> {
  // CHECK: [[A:%.*]]:2 = "kernel.alternatives"(%arg0)
  %a:2 = "kernel.alternatives"(%m) ({
    // CHECK: "kernel.launch"(%arg0, %arg1) {grid = #{{.*}}, kernel = @quant_0,
    %q:2 = "kernel.launch"(%m, %x) {kernel = @quant_0, grid = affine_map<(m) -> (m, m floordiv 2 + 7)>,
        result_shapes = [affine_map<(m) -> (m, 64)>, affine_map<(m) -> (m, 2)>], strided = array<i64: 0>,
        operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0>}
        : (index, tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
    // CHECK: "kernel.yield"
    "kernel.yield"(%q#0, %q#1) {operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>) -> ()
  }, {
    %q:2 = "kernel.launch"(%m, %x) {kernel = @quant_0, grid = affine_map<(m) -> (1)>,
        result_shapes = [affine_map<(m) -> (m, 64)>, affine_map<(m) -> (m, 2)>], strided = array<i64>,
        operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0>}
        : (index, tensor<?x64xbf16>) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
    "kernel.yield"(%q#0, %q#1) {operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>) -> ()
  // CHECK: max_m = 512 : i64, reason = "measured"
  }) {choice = "fusion", max_m = 512 : i64, reason = "measured", resultSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0>} : (index) -> (tensor<?x64xf4E2M1FN>, tensor<?x2xf8E8M0FNU>)
  // CHECK: return [[A]]#0
  return %a#0 : tensor<?x64xf4E2M1FN>
}
