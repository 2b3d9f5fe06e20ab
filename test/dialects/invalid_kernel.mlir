// RUN: moeloom-opt %s --split-input-file --verify-diagnostics
// One case for every rule of the verifiers in dialects/kernel.py; test/dialects/test_rules.py proves that each case
// fails without its rule.

func.func @launch_grid_of_two_dimensions(%m: index, %x: tensor<?x64xbf16>) {
  // expected-error@below {{'kernel.launch' grid is affine_map<(d0, d1) -> (d0)>; it must be an affine map of M alone, with a result}}
  %0 = "kernel.launch"(%m, %x) {kernel = @k, grid = affine_map<(m, n) -> (m)>, result_shapes = [affine_map<(m) -> (m, 64)>], strided = array<i64: 0>,
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>}
      : (index, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @launch_grid_with_a_symbol(%m: index, %x: tensor<?x64xbf16>) {
  // expected-error@below {{'kernel.launch' grid is affine_map<(d0)[s0] -> (d0)>; it must be an affine map of M alone, with a result}}
  %0 = "kernel.launch"(%m, %x) {kernel = @k, grid = affine_map<(m)[s] -> (m)>, result_shapes = [affine_map<(m) -> (m, 64)>], strided = array<i64: 0>,
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>}
      : (index, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @launch_grid_without_results(%m: index, %x: tensor<?x64xbf16>) {
  // expected-error@below {{'kernel.launch' grid is affine_map<(d0) -> ()>; it must be an affine map of M alone, with a result}}
  %0 = "kernel.launch"(%m, %x) {kernel = @k, grid = affine_map<(m) -> ()>, result_shapes = [affine_map<(m) -> (m, 64)>], strided = array<i64: 0>,
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>}
      : (index, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @launch_without_a_result_shape(%m: index, %x: tensor<?x64xbf16>) {
  // expected-error@below {{'kernel.launch' has 1 results and 0 result_shapes; there must be one for each}}
  %0 = "kernel.launch"(%m, %x) {kernel = @k, grid = affine_map<(m) -> (m)>, result_shapes = [], strided = array<i64: 0>,
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>}
      : (index, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @launch_result_is_no_tensor(%m: index, %x: tensor<?x64xbf16>) {
  // expected-error@below {{'kernel.launch' result 0 is f32; it must be a ranked tensor}}
  %0 = "kernel.launch"(%m, %x) {kernel = @k, grid = affine_map<(m) -> (m)>, result_shapes = [affine_map<(m) -> (m, 64)>], strided = array<i64: 0>,
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>}
      : (index, tensor<?x64xbf16>) -> f32
  return
}

// -----

func.func @launch_result_shape_is_no_map(%m: index, %x: tensor<?x64xbf16>) {
  // expected-error@below {{'kernel.launch' result_shapes[0] is 64 : i64; it must be an affine map of M alone}}
  %0 = "kernel.launch"(%m, %x) {kernel = @k, grid = affine_map<(m) -> (m)>, result_shapes = [64], strided = array<i64: 0>,
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>}
      : (index, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @launch_result_shape_of_another_rank(%m: index, %x: tensor<?x64xbf16>) {
  // expected-error@below {{'kernel.launch' result_shapes[0] has 1 results; it must have 2, one for each axis}}
  %0 = "kernel.launch"(%m, %x) {kernel = @k, grid = affine_map<(m) -> (m)>, result_shapes = [affine_map<(m) -> (m)>], strided = array<i64: 0>,
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>}
      : (index, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @launch_strided_is_no_list(%m: index, %x: tensor<?x64xbf16>) {
  // expected-error@below {{'kernel.launch' strided is 0 : i64; it must be an array<i64>}}
  %0 = "kernel.launch"(%m, %x) {kernel = @k, grid = affine_map<(m) -> (m)>, result_shapes = [affine_map<(m) -> (m, 64)>], strided = 0 : i64,
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>}
      : (index, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @launch_strided_beyond_the_operands(%m: index, %x: tensor<?x64xbf16>) {
  // expected-error@below {{'kernel.launch' strided names operand 1; there are 1 after M}}
  %0 = "kernel.launch"(%m, %x) {kernel = @k, grid = affine_map<(m) -> (m)>, result_shapes = [affine_map<(m) -> (m, 64)>], strided = array<i64: 1>,
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>}
      : (index, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @alternatives_below_zero(%m: index, %x: tensor<?x64xbf16>, %y: tensor<?x32xbf16>) {
  // expected-error@below {{'kernel.alternatives' max_m is -1; it must be a number of tokens}}
  %0 = "kernel.alternatives"(%m) ({
    "kernel.yield"(%x) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x64xbf16>) -> ()
  }, {
    "kernel.yield"(%x) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x64xbf16>) -> ()
  }) {choice = "fusion", max_m = -1 : i64, reason = "measured", resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (index) -> tensor<?x64xbf16>
  return
}

// -----

func.func @alternatives_of_another_kind(%m: index, %x: tensor<?x64xbf16>) {
  // expected-error@below {{'kernel.alternatives' choice is 'layout'; it must be fusion or linear or sort or prologue or routing or tokens}}
  %0 = "kernel.alternatives"(%m) ({
    "kernel.yield"(%x) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x64xbf16>) -> ()
  }, {
    "kernel.yield"(%x) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x64xbf16>) -> ()
  }) {choice = "layout", max_m = 512 : i64, reason = "measured", resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (index) -> tensor<?x64xbf16>
  return
}

// -----

func.func @alternatives_of_two_blocks(%m: index, %x: tensor<?x64xbf16>, %y: tensor<?x32xbf16>) {
  // expected-error@below {{'kernel.alternatives' second region has 2 blocks; it must have 1}}
  %0 = "kernel.alternatives"(%m) ({
    "kernel.yield"(%x) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x64xbf16>) -> ()
  }, {
    cf.br ^next
  ^next:
    "kernel.yield"(%x) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x64xbf16>) -> ()
  }) {choice = "fusion", max_m = 512 : i64, reason = "measured", resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (index) -> tensor<?x64xbf16>
  return
}

// -----

func.func @alternatives_without_a_yield(%m: index, %x: tensor<?x64xbf16>, %y: tensor<?x32xbf16>) {
  // expected-error@below {{'kernel.alternatives' first region must end in kernel.yield}}
  %0 = "kernel.alternatives"(%m) ({
    ub.unreachable
  }, {
    "kernel.yield"(%x) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x64xbf16>) -> ()
  }) {choice = "fusion", max_m = 512 : i64, reason = "measured", resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (index) -> tensor<?x64xbf16>
  return
}

// -----

func.func @alternatives_that_yield_another_type(%m: index, %x: tensor<?x64xbf16>, %y: tensor<?x32xbf16>) {
  // expected-error@below {{'kernel.alternatives' second region yields (tensor<?x32xbf16>); it must yield (tensor<?x64xbf16>)}}
  %0 = "kernel.alternatives"(%m) ({
    "kernel.yield"(%x) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x64xbf16>) -> ()
  }, {
    "kernel.yield"(%y) {operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (tensor<?x32xbf16>) -> ()
  }) {choice = "fusion", max_m = 512 : i64, reason = "measured", resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (index) -> tensor<?x64xbf16>
  return
}

// -----

func.func @exchange_of_any_size() {
  // expected-error@below {{'kernel.exchange' gives tensor<?xi32>; it must be tensor<Nxi32> of a known number of words}}
  %0 = "kernel.exchange"() {resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : () -> tensor<?xi32>
  return
}

// -----

func.func @exchange_of_floats() {
  // expected-error@below {{'kernel.exchange' gives tensor<8192xf32>; it must be tensor<Nxi32> of a known number of words}}
  %0 = "kernel.exchange"() {resultSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0, 0, 0>} : () -> tensor<8192xf32>
  return
}
